"""RULER (arXiv 2404.06654): thirteen tasks made to length, and their metric.

A length includes the tokens to generate and is counted with the model's own tokenizer and chat template,
answer prefix included. Wordings are those of RULER's newer tree, read from the installed lm-eval and mended;
generators are our own, because lm-eval's draw from one global random state, so that its data depend on the
order of tasks.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lkv.bench.protocol import PROTOCOLS, Protocol
from lkv.bench.ruler.niah import Needles, niah
from lkv.bench.ruler.qa import qa
from lkv.bench.ruler.wordings import Generator, Prompt
from lkv.bench.ruler.words import cwe, fwe, vt
from lkv.bench.sample import BenchmarkSample
from lkv.data import documents
from lkv.errors import UserError, one_of
from lkv.model.chat_template import record_ids, record_parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Task:
    """One task: its haystack, the tokens to generate, its metric, and what a needle task hides."""

    haystack: str
    tokens: int
    metric: str = "all"
    needles: Needles | None = None


# RULER's own parameters (its synthetic.yaml and constants.py).
TASKS = {
    "niah_single_1": Task("noise", 128, needles=Needles()),
    "niah_single_2": Task("essays", 128, needles=Needles()),
    "niah_single_3": Task("essays", 128, needles=Needles(value="uuids")),
    "niah_multikey_1": Task("essays", 128, needles=Needles(keys=4)),
    "niah_multikey_2": Task("needles", 128, needles=Needles()),
    "niah_multikey_3": Task("needles", 128, needles=Needles(key="uuids", value="uuids")),
    "niah_multivalue": Task("essays", 128, needles=Needles(values=4)),
    "niah_multiquery": Task("essays", 128, needles=Needles(keys=4, queries=4)),
    "vt": Task("noise", 30),
    "cwe": Task("words", 120),
    "fwe": Task("coded", 50),
    "qa_1": Task("squad", 32, metric="part"),
    "qa_2": Task("hotpotqa", 32, metric="part"),
}
METRICS = ("all", "part")
CLEANINGS = {"ruler": "\n", "kvpress": ""}  # what a control character becomes
SAMPLES = 500  # per task and length

Sized = tuple[int, dict[str, Any]]  # units of haystack, the record


@dataclass(frozen=True)
class Terms:
    """What a protocol makes of one task: its label, and the record's fields of these names."""

    protocol: str
    question_aware: bool
    template: bool
    metric: str
    max_new_tokens: int


def terms(task: str, protocol: Protocol, max_new_tokens: int | None = None) -> Terms:
    """`max_new_tokens` caps the tokens to generate; tasks that it leaves alone carry the same label."""
    if task not in TASKS:
        raise one_of("RULER task", task, TASKS)
    if max_new_tokens is not None and max_new_tokens < 1:
        raise UserError(f"RULER's max_new_tokens is {max_new_tokens}; it must be 1 or more")
    row = TASKS[task]
    if protocol.ruler_metric and row.metric != protocol.ruler_metric:
        raise UserError(
            f"the protocol {protocol.name} has no {task}: that harness has no QA tasks; "
            "leave qa_1 and qa_2 out, or set protocol.name: official"
        )
    tokens = protocol.ruler_tokens or row.tokens
    most = protocol.ruler_tokens or max(other.tokens for other in TASKS.values())
    capped = max_new_tokens is not None and max_new_tokens < most
    return Terms(
        protocol=protocol.label("ruler", max_new_tokens if capped else None),
        question_aware=protocol.question_aware,
        template=protocol.templated("ruler"),
        metric=protocol.ruler_metric or row.metric,
        max_new_tokens=min(tokens, max_new_tokens or tokens),
    )


def record(
    task: str,
    length: int,
    sample: int,
    planned: int,
    haystack: str,
    agreed: Terms,
    prompt: Prompt,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """One line of a data file, its tokens counted as they will be run."""
    made = BenchmarkSample(
        benchmark="ruler",
        task=task,
        length=length,
        sample=sample,
        planned=planned,
        haystack=haystack,
        protocol=agreed.protocol,
        question_aware=agreed.question_aware,
        template=agreed.template,
        input=prompt.input,
        question_at=prompt.question_at,
        answer_prefix=prompt.answer_prefix,
        outputs=prompt.outputs,
        classes=[],
        metric=agreed.metric,
        max_new_tokens=agreed.max_new_tokens,
        stops=[],
        min_new_tokens=0,
        prompt_tokens=0,  # counted below
    ).as_record()
    parts = [record_ids(tokenizer, made)] if agreed.question_aware else record_parts(tokenizer, made)
    return {**made, "prompt_tokens": sum(map(len, parts))}


def build(
    task: str,
    length: int,
    samples: int,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    haystack: str = "pydoc",
    squad: str | Path | None = None,
    hotpotqa: str | Path | None = None,
    max_new_tokens: int | None = None,
    protocol: Protocol = PROTOCOLS["official"],
) -> Iterator[dict[str, Any]]:
    """Records of one task at one length, each at most `length` tokens with what is to be generated.

    Sample i depends on seed, task, length, sources, protocol and tokenizer alone: not on the order of tasks,
    nor on how many samples there are. `max_new_tokens` caps the task's own number; `haystack` is `pydoc` or
    essays, `squad` and `hotpotqa` are files (lkv.data.documents says in which forms). What cannot be built
    is refused before the first record.
    """
    agreed = terms(task, protocol, max_new_tokens)
    for name, value in (("length", length), ("samples", samples)):
        if value < 1:
            raise UserError(f"RULER's {name} is {value}; it must be 1 or more")
    row = TASKS[task]
    files = {"squad": squad, "hotpotqa": hotpotqa}
    maker = Maker(
        task,
        samples,
        seed,
        tokenizer,
        agreed,
        essays=documents.haystack(haystack) if row.haystack == "essays" else None,
        asked=qa(row.haystack, files[row.haystack]) if row.haystack in files else None,
    )
    maker.require(length)
    return maker.records(length)


@dataclass(frozen=True)
class Maker:
    """Makes one task's samples at any length.

    `essays` is the text that hides the needles and its name, None where other text hides them. `asked` makes
    the prompts of a QA task, and is None for the others.
    """

    task: str
    samples: int
    seed: int
    tokenizer: PreTrainedTokenizerBase
    agreed: Terms
    essays: tuple[str, str] | None
    asked: Generator | None

    def generator(self, length: int) -> Generator:
        row = TASKS[self.task]
        if row.needles:
            return niah(row.needles, row.haystack, length, self.essays)
        if self.asked:
            return self.asked
        return vt(length, self._count) if self.task == "vt" else {"cwe": cwe, "fwe": fwe}[self.task](length)

    def sample(self, made: Generator, length: int, index: int, size: int) -> Sized:
        """Sample `index` with `size` units of haystack, drawn from a random state of its own."""
        prompt = made.make(size, random.Random(f"{self.seed}/{self.task}/{length}/{index}"), index)
        return size, record(
            self.task, length, index, self.samples, made.haystack, self.agreed, prompt, self.tokenizer
        )

    def needed(self, length: int) -> int:
        """The tokens that every sample fits in with the least haystack, those to generate included."""
        made = self.generator(length)
        least = (self.sample(made, length, index, made.least)[1] for index in range(self.samples))
        return self.agreed.max_new_tokens + max(one["prompt_tokens"] for one in least)

    def require(self, length: int) -> None:
        """Refuses a length that not every sample fits, and names one that they all fit."""
        if (smallest := self.needed(length)) <= length:
            return
        # A longer length may have a longer worked example, and so need more again.
        while (more := self.needed(smallest)) > smallest:
            smallest = more
        raise UserError(
            f"RULER's {self.task} does not fit {length} tokens, {self.agreed.max_new_tokens} of them to "
            f"generate; the smallest length found for {self.samples} samples is {smallest}; set that or a "
            "longer one"
        )

    def records(self, length: int) -> Iterator[dict[str, Any]]:
        """Every sample in turn, its haystack as large as the length allows, or nearly."""
        made, room = self.generator(length), length - self.agreed.max_new_tokens
        # The largest size is searched once, on the first sample; each sample starts from it.
        start, _ = _fit(partial(self.sample, made, length, 0), made.least, made, room, slack=0)
        for index in range(self.samples):
            yield _fit(partial(self.sample, made, length, index), start, made, room, slack=room // 50)[1]

    def _count(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False).input_ids)


def _fit(attempt: Callable[[int], Sized], start: int, made: Generator, room: int, slack: int) -> Sized:
    """The largest size whose tokens fit `room`, or the first found that leaves at most `slack` of it.

    Steps from `start` are proportional to what is left; each narrows the bounds, so the search ends. The
    least size is known to fit.
    """
    below, above, size = made.least - 1, made.most + 1, start
    best: Sized | None = None
    while above - below > 1:
        tried = attempt(size)
        tokens = tried[1]["prompt_tokens"]
        left = room - tokens
        if left >= 0:
            below, best = size, tried
            if left <= slack:
                break
        else:
            above = size
        size = min(max(size + round(left * size / tokens), below + 1), above - 1)
    assert best
    return best


def score(prediction: str, record: Mapping[str, Any]) -> float:
    """0 to 100 for one answer, by RULER's own cleaning and the record's metric."""
    return string_match(prediction, record["outputs"], record["metric"])


def string_match(prediction: str, outputs: Sequence[str], metric: str, cleaning: str = "ruler") -> float:
    """0 to 100 for one sample: `all` is the share of references found, `part` is 100 if any is.

    Found means: a substring, case aside. lm-eval 0.4.13 gives the share for `part` as well.
    """
    if metric not in METRICS:
        raise one_of("RULER metric", metric, METRICS)
    if not outputs:
        raise UserError("a RULER sample has no reference answers (outputs); build the data again")
    text = clean(prediction, cleaning).lower()
    found = [output.lower() in text for output in outputs]
    return 100.0 * (any(found) if metric == "part" else sum(found) / len(found))


def clean(prediction: str, cleaning: str = "ruler") -> str:
    """RULER's cleaning: blanks off both ends, control characters to newlines, blanks off again.

    kvpress (`cleaning`) deletes control characters, which can glue two lines' digits into a false hit.
    """
    if cleaning not in CLEANINGS:
        raise one_of("cleaning", cleaning, CLEANINGS)
    return re.sub(r"[\x00-\x1f]", CLEANINGS[cleaning], prediction.strip()).strip()
