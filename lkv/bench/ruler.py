"""RULER (arXiv 2404.06654): thirteen tasks made to length, and their metric.

A length includes the tokens to generate and is counted with the model's own tokenizer and chat template,
answer prefix included. Wordings are the installed lm-eval's; generators are our own, because lm-eval's draw
from one global random state, so that its data depend on the order of tasks.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lkv.bench.ruler_common import Generator, Prompt
from lkv.bench.ruler_niah import Needles, niah
from lkv.bench.ruler_qa import qa
from lkv.bench.ruler_words import cwe, fwe, vt
from lkv.chat import chat_ids
from lkv.data import documents
from lkv.errors import UserError, one_of

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

Sized = tuple[int, int, Prompt]  # units of haystack, tokens of the whole prompt, the prompt


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
) -> Iterator[dict[str, Any]]:
    """Records of one task at one length, each at most `length` tokens with what is to be generated.

    Sample i depends on seed, task, length, sources and tokenizer alone: not on the order of tasks, nor on
    how many samples there are. `max_new_tokens` caps the task's own number; `haystack` is `pydoc` or an
    essays file. What cannot be built is refused before the first record.
    """
    if task not in TASKS:
        raise one_of("RULER task", task, TASKS)
    for name, value in (("length", length), ("samples", samples), ("max_new_tokens", max_new_tokens)):
        if value is not None and value < 1:
            raise UserError(f"RULER's {name} is {value}; it must be 1 or more")
    row = TASKS[task]
    reserve = min(row.tokens, max_new_tokens or row.tokens)
    essays = documents.haystack(haystack) if row.haystack == "essays" else None

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False).input_ids)

    def generator(length: int) -> Generator:
        match task:
            case "vt":
                return vt(length, count)
            case "cwe":
                return cwe(length)
            case "fwe":
                return fwe(length)
            case "qa_1":
                return qa("squad", squad)
            case "qa_2":
                return qa("hotpotqa", hotpotqa)
        assert row.needles
        return niah(row.needles, row.haystack, length, essays)

    def sample(made: Generator, length: int, index: int, size: int) -> Sized:
        prompt = made.make(size, random.Random(f"{seed}/{task}/{length}/{index}"), index)
        return size, len(chat_ids(tokenizer, prompt.input, prompt.answer_prefix)), prompt

    def needed(length: int) -> int:
        made = generator(length)
        return reserve + max(sample(made, length, index, made.least)[1] for index in range(samples))

    if (smallest := needed(length)) > length:
        # A longer length may have a longer worked example, and so need more again.
        while (more := needed(smallest)) > smallest:
            smallest = more
        raise UserError(
            f"RULER's {task} does not fit {length} tokens, {reserve} of them to generate; "
            f"the smallest length found for {samples} samples is {smallest}; set that or a longer one"
        )

    def records() -> Iterator[dict[str, Any]]:
        made, room = generator(length), length - reserve
        # The largest size is searched once, on the first sample; each sample starts from it.
        start, _, _ = _fit(partial(sample, made, length, 0), made.least, made, room, slack=0)
        for index in range(samples):
            _, tokens, prompt = _fit(
                partial(sample, made, length, index), start, made, room, slack=room // 50
            )
            yield {
                "benchmark": "ruler",
                "task": task,
                "length": length,
                "sample": index,
                "input": prompt.input,
                "answer_prefix": prompt.answer_prefix,
                "outputs": prompt.outputs,
                "max_new_tokens": reserve,
                "prompt_tokens": tokens,
                "haystack": made.haystack,
                "metric": row.metric,
            }

    return records()


def _fit(attempt: Callable[[int], Sized], start: int, made: Generator, room: int, slack: int) -> Sized:
    """The largest size whose tokens fit `room`, or the first found that leaves at most `slack` of it.

    Steps from `start` are proportional to what is left; each narrows the bounds, so the search ends. The
    least size is known to fit.
    """
    below, above, size = made.least - 1, made.most + 1, start
    best: Sized | None = None
    while above - below > 1:
        tried = attempt(size)
        left = room - tried[1]
        if left >= 0:
            below, best = size, tried
            if left <= slack:
                break
        else:
            above = size
        size = min(max(size + round(left * size / tried[1]), below + 1), above - 1)
    assert best
    return best


def clean(prediction: str) -> str:
    """RULER's cleaning: blanks off both ends, control characters to newlines, blanks off again.

    kvpress deletes control characters instead, which can glue two lines' digits into a false hit.
    """
    return re.sub(r"[\x00-\x1f]", "\n", prediction.strip()).strip()


def score(prediction: str, outputs: list[str], metric: str) -> float:
    """0 to 100 for one sample: `all` is the share of references found, `part` is 100 if any is.

    Found means: a substring, case aside. lm-eval 0.4.13 gives the share for `part` as well.
    """
    if metric not in METRICS:
        raise one_of("RULER metric", metric, METRICS)
    if not outputs:
        raise UserError("a RULER sample has no reference answers (outputs); build the data again")
    text = clean(prediction).lower()
    found = [output.lower() in text for output in outputs]
    return 100.0 * (any(found) if metric == "part" else sum(found) / len(found))
