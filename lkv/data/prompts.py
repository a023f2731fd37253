"""Training prompts, made offline from a seed: look-ups in records, documents, code, repeat-a-sentence.

In most of them, where something is looked up, the whole context is records (tables, JSON, dictionaries,
definitions, logs). Two kinds come nearer to a needle in a haystack: `block`, documents that hold small blocks
of records, and, for a labelled arm, `hidden`, facts scattered in filler text. Documents come from the
training side of lkv.data.documents alone.

Every prompt has an exact length in tokens, so that batches need no padding: its body is cut to fit. Where the
context holds the one right answer to the question, the prompt brings it along.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import get_context
from random import Random
from typing import TYPE_CHECKING, Any

from lkv.errors import UserError, one_of
from lkv.model.chat_template import chat_text, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
from lkv.data.lookups import (
    TEAMS,
    asked_for,
    block,
    definitions,
    dictionary,
    hidden,
    joined_lines,
    json_records,
    table,
    value,
)
from lkv.data.reading import code, repeat, summary
from lkv.data.sketch import Fact, Items, Sketch

WORTH_A_PROCESS = 500  # prompts: it takes about a second to start


def build(
    tokenizer: PreTrainedTokenizerBase,
    samples: int,
    lengths: Sequence[int],
    mixture: Mapping[str, float],
    seed: int,
) -> Iterator[dict[str, Any]]:
    """`samples` prompts of exactly `lengths` tokens in turn.

    Each is {"id", "kind", "length", "ids", "documents", "answer"}; the answer: the true one's text, or None.
    `mixture` weighs the kinds. Prompt i is the same however many are built, and by how many processes.
    """
    for kind in mixture:
        if kind not in KINDS:
            raise one_of("kind of training prompt", kind, KINDS)
    kinds, weights = list(mixture), list(mixture.values())
    if not kinds or not all(0 <= weight < math.inf for weight in weights) or sum(weights) <= 0:
        raise UserError(f"the mixture {dict(mixture)} has no positive weight; give at least one kind=weight")
    given = tokenizer, lengths, kinds, weights, seed
    processes = min(os.cpu_count() or 1, samples // WORTH_A_PROCESS)
    if processes < 2:
        yield from (_prompt(i, *given) for i in range(samples))
        return
    context = get_context("forkserver")  # a fork of this process would copy what a GPU's driver has open
    context.set_forkserver_preload([__name__, type(tokenizer).__module__])  # imported once for all
    with context.Pool(processes, _Worker.start, given) as pool:
        yield from pool.imap(_Worker.prompt, range(samples), chunksize=16)


def _prompt(
    i: int,
    tokenizer: PreTrainedTokenizerBase,
    lengths: Sequence[int],
    kinds: Sequence[str],
    weights: Sequence[float],
    seed: int,
) -> dict[str, Any]:
    rng = Random(f"{seed}/train/{i}")
    kind = rng.choices(kinds, weights)[0]
    length = lengths[i % len(lengths)]
    ids, used, answer = sized(tokenizer, KINDS[kind](rng), length, rng)
    return {"id": i, "kind": kind, "length": length, "ids": ids, "documents": used, "answer": answer}


class _Worker:
    """A process' own copy of what all its prompts share."""

    given: tuple[Any, ...] = ()

    @classmethod
    def start(cls, *given: Any) -> None:
        cls.given = given

    @classmethod
    def prompt(cls, i: int) -> dict[str, Any]:
        return _prompt(i, *cls.given)


def sized(
    tokenizer: PreTrainedTokenizerBase, sketch: Sketch, length: int, rng: Random
) -> tuple[list[int], list[str], str | None]:
    """The templated prompt in exactly `length` token ids, its documents and its true answer.

    What is asked about lies inside the cut body.
    """
    before, after = chat_text(tokenizer, "\ue000").split("\ue000")

    def encode(text: str) -> list[int]:
        return token_ids(tokenizer, [text], special=False)[0]

    start, body = encode(before + sketch.head), []
    facts: list[tuple[int, Fact]] = []  # where a record ends in the body, and what can be asked of it
    for text, fact in sketch.items:
        body += encode(text)
        if fact is not None:
            facts.append((len(body), fact))
        if len(body) >= length:
            break
    asked = min(len(facts), rng.choices((1, 2, 3), (6, 3, 1))[0])
    while facts:
        chosen = rng.sample(facts, k=min(asked, len(facts)))
        begun = sketch.begin(chosen[0][1].key) if sketch.begin else ""
        end = encode("\n" + sketch.ask([fact.key for _, fact in chosen]) + after + begun)
        room = length - len(start) - len(end)
        if all(ends <= room for ends, _ in chosen):
            answered = [fact.answer for _, fact in chosen[: 1 if sketch.first_alone else None]]
            return start + body[:room] + end, sketch.documents, joined_lines(answered)
        if asked == 1:  # the cut that this question needs would lose what it asks about
            facts.remove(chosen[0])
        asked = 1
    raise UserError(
        f"{length} tokens hold no whole record between question and template with this tokenizer; "
        "give longer training lengths, or leave this kind out of the mixture"
    )


def log(rng: Random) -> Sketch:
    """Log lines in order; what was recorded for a request is asked for."""
    clock = rng.randrange(86_400)

    def lines() -> Items:
        nonlocal clock
        while True:
            clock = (clock + rng.randrange(1, 90)) % 86_400
            stamp = f"{clock // 3600:02}:{clock // 60 % 60:02}:{clock % 60:02}"
            request = f"r{rng.getrandbits(20):05x}"
            team, result = rng.choice(TEAMS), value(rng)
            yield f"{stamp} {team} request={request} result={result}\n", Fact(request, result)

    return Sketch("server.log\n", lines(), lambda keys: f"Report the result logged for {asked_for(keys)}.")


KINDS: dict[str, Callable[[Random], Sketch]] = {
    "table": table,
    "json_records": json_records,
    "dictionary": dictionary,
    "definitions": definitions,
    "log": log,
    "summary": summary,
    "code": code,
    "repeat": repeat,
    "block": block,
    "hidden": hidden,
}
