"""LongBench (arXiv 2308.14508): sixteen English tasks as the benchmark's own pred.py runs them.

Order: fill the template, cut the middle out of what is too long for the model, apply the chat template where
the benchmark does. The scores are in longbench_metrics.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from lkv.bench import sources
from lkv.bench.longbench import metrics as longbench_metrics
from lkv.bench.longbench.prompts import fill, fit, template
from lkv.bench.sample import BenchmarkSample
from lkv.errors import UserError, one_of
from lkv.files.json_files import fingerprint
from lkv.model.chat_template import token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lkv.bench.protocol import Protocol


@dataclass(frozen=True)
class Task:
    """One task: how many samples it has, the tokens to generate, its metric, what is special in running it.

    `template`: whether chat models get their template. `first_line`: whether only the answer's first line
    is scored. `stops`: texts whose last token ends an answer. `min_new_tokens`: 1 where the first token may
    not end it.
    """

    samples: int
    tokens: int
    metric: str
    template: bool = True
    first_line: bool = False
    stops: tuple[str, ...] = ()
    min_new_tokens: int = 0


# LongBench's dataset2maxlen.json, pred.py and eval.py, in the order of its tables.
TASKS = {
    "narrativeqa": Task(200, 128, "qa_f1"),
    "qasper": Task(200, 128, "qa_f1"),
    "multifieldqa_en": Task(150, 64, "qa_f1"),
    "hotpotqa": Task(200, 32, "qa_f1"),
    "2wikimqa": Task(200, 32, "qa_f1"),
    "musique": Task(200, 32, "qa_f1"),
    "gov_report": Task(200, 512, "rouge_l"),
    "qmsum": Task(200, 512, "rouge_l"),
    "multi_news": Task(200, 512, "rouge_l"),
    "trec": Task(200, 64, "classification", template=False, first_line=True),
    "triviaqa": Task(200, 32, "qa_f1", template=False, first_line=True),
    "samsum": Task(
        200, 128, "rouge_l", template=False, first_line=True, stops=("\n",), min_new_tokens=1
    ),
    "passage_count": Task(200, 32, "count"),
    "passage_retrieval_en": Task(200, 32, "retrieval"),
    "lcc": Task(500, 64, "code_sim", template=False),
    "repobench-p": Task(500, 64, "code_sim", template=False),
}  # fmt: skip

BATCH = 16  # prompts tokenised at once: enough for the cores, and a few hundred megabytes at most
SEAM = 16  # tokens that a cut prompt can gain when it is tokenised again: half characters at the seam


@dataclass(frozen=True)
class Sample:
    """One record of the benchmark, checked. `place` is where it stands, for errors."""

    place: str
    context: str
    question: str
    answers: list[str]
    classes: list[str]


class Prompt(NamedTuple):
    """A sample's text as it is run, the character at which its question begins, and its tokens."""

    sample: Sample
    text: str
    question_at: int
    tokens: int


def build(
    task: str,
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    protocol: Protocol,
    samples: int | None = None,
    max_new_tokens: int | None = None,
    context: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Records of one task from `source` (lkv.bench.sources.FORMS), the first `samples` of them.

    `max_new_tokens` caps the task's own number. `context` is how many tokens the model takes; a prompt that
    does not fit with what is to be generated is refused. A missing source is refused before the first record.
    """
    _check(task, samples, max_new_tokens, protocol)
    row = TASKS[task]
    planned = min(row.samples, samples or row.samples)
    new_tokens = min(row.tokens, max_new_tokens or row.tokens)
    templated = protocol.templated("longbench", row.template)
    # KVCache-Factory's run_longbench.py sets min_length for every task, the benchmark for samsum alone.
    min_new_tokens = 1 if protocol.name == "kvcache_factory" else row.min_new_tokens
    template(task)  # another lm-eval is refused here
    read = islice(_samples(task, sources.records(source, task)), planned)

    def records() -> Iterator[dict[str, Any]]:
        made = 0
        for item, text, question_at, tokens in _prompts(
            task, read, tokenizer, protocol.max_prompt, templated
        ):
            if context is not None and tokens + new_tokens > context:
                around = tokens - len(token_ids(tokenizer, [text])[0])
                raise _too_long(item.place, tokens, new_tokens, context, around)
            yield BenchmarkSample(
                benchmark="longbench",
                task=task,
                length=0,
                sample=made,
                planned=planned,
                haystack="",
                protocol=protocol.label("longbench", new_tokens if new_tokens < row.tokens else None),
                question_aware=protocol.question_aware,
                template=templated,
                input=text,
                question_at=question_at,
                answer_prefix="",
                outputs=item.answers,
                classes=item.classes,
                metric=row.metric,
                max_new_tokens=new_tokens,
                stops=list(row.stops),
                min_new_tokens=min_new_tokens,
                prompt_tokens=tokens,
            ).as_record()
            made += 1
        if not made:
            raise UserError(f"{source} has no record of {task}; give LongBench's {task}.jsonl")

    return records()


def score(prediction: str, record: Mapping[str, Any]) -> float:
    """0 to 100 for one answer, by the task's own metric, after the task's own post-processing."""
    return longbench_metrics.score(record["task"], prediction, record["outputs"], record["classes"])


def _check(task: str, samples: int | None, max_new_tokens: int | None, protocol: Protocol) -> None:
    if task not in TASKS:
        raise one_of("LongBench task", task, TASKS)
    for name, value, least in (
        ("samples", samples, 1), ("max_new_tokens", max_new_tokens, 1), ("max_prompt", protocol.max_prompt, 2)
    ):  # fmt: skip
        if value is not None and value < least:
            raise UserError(f"LongBench's {name} is {value}; it must be {least} or more")


def _prompts(
    task: str,
    samples: Iterator[Sample],
    tokenizer: PreTrainedTokenizerBase,
    most: int | None,
    templated: bool,
) -> Iterator[Prompt]:
    """The prompts of `samples`, made a batch at a time. Those over `most` tokens lose their middle."""
    while batch := list(islice(samples, BATCH)):
        filled = [fill(task, item.context, item.question) for item in batch]
        fitted = fit(tokenizer, [text for text, _ in filled], most, templated)
        for item, (_, end), (text, tokens) in zip(batch, filled, fitted, strict=True):
            # A cut that reaches into the end leaves no place where the question begins.
            question_at = len(text) - len(end) if text.endswith(end) else 0
            yield Prompt(item, text, question_at, tokens)


def _samples(task: str, records: sources.Placed) -> Iterator[Sample]:
    """Checked records, none of them twice: by `_id`, or by the texts where there is none."""
    seen: dict[str, str] = {}
    for place, record in records:
        sample = _checked(task, place, record)
        key = str(record.get("_id") or fingerprint(sample.question, sample.context))
        if key in seen:
            raise UserError(f"{place}: the same record as {seen[key]} ({key}); keep one of them")
        seen[key] = place
        yield sample


def _checked(task: str, place: str, record: dict[str, Any]) -> Sample:
    """A record as LongBench has it, or as its hub mirror has it (`question` for `input`, lists as text)."""
    context, question = record.get("context"), record.get("input", record.get("question"))
    fields = {"context": context, "input": question, "answers": record.get("answers")}
    if missing := [name for name, value in fields.items() if value is None]:
        raise UserError(f"{place}: the record lacks {', '.join(missing)}; give LongBench's own {task}.jsonl")
    if not isinstance(context, str) or not isinstance(question, str):
        raise UserError(f"{place}: context and input must be texts; give LongBench's own {task}.jsonl")
    answers, classes = _texts(record["answers"]), _texts(record.get("all_classes") or [])
    if not answers or not all(answer.strip() for answer in answers):  # no official record has a blank one
        raise UserError(f"{place}: answers must be a list of texts, none of them empty")
    if classes is None or (TASKS[task].metric == "classification" and not classes):
        raise UserError(f"{place}: all_classes must be a list of texts; {task} is scored with it")
    if (named := record.get("dataset")) not in (None, task):
        raise UserError(f"{place}: the record is of {named!r}, not of {task!r}; is the file misnamed?")
    try:
        "".join([context, question, *answers, *classes]).encode("utf-8")
    except UnicodeEncodeError as error:  # "\ud800" is JSON, yet no text
        raise UserError(f"{place}: half a character ({error.reason}); mend the file") from None
    return Sample(place, context, question, answers, classes)


def _texts(value: object) -> list[str] | None:
    """A list of texts, or what JSON or Python text says is one; None if it is not."""
    found = value
    if isinstance(value, str):
        for parse in (json.loads, ast.literal_eval):
            with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                found = parse(value)
                break
    return found if isinstance(found, list) and all(isinstance(item, str) for item in found) else None


def _too_long(place: str, tokens: int, new_tokens: int, context: int, around: int) -> UserError:
    """`around`: tokens that the chat template adds."""
    room = context - new_tokens - around - SEAM
    way_out = (
        f"set max_prompt to at most {room}" if room > 1 else "cap the new tokens, or take a model with more"
    )
    return UserError(
        f"{place}: a prompt of {tokens} tokens and {new_tokens} to generate exceed the model's context of "
        f"{context}; {way_out}"
    )
