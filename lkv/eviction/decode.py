"""Decoding of many rows as one batch, each from its own kept entries and position.

Rows = samples × methods × budgets; shapes are fixed and rows fill slots of their own, so that on CUDA a step
is captured once a shape and replayed. Storage is shared by all shapes of a model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lkv.cache.rows import Row
from lkv.errors import UserError
from lkv.model.attention import require_observable
from lkv.model.rope import length_dependent

if TYPE_CHECKING:
    pass
from lkv.eviction.decoder import Decoder, decoder_for, forget

log = logging.getLogger("lkv")

Clock: TypeAlias = Callable[[str], AbstractContextManager[None]]
Done: TypeAlias = Callable[[int, "list[int]"], None]  # (row, its tokens)
LOOK_EVERY = 8  # steps on CUDA between two looks at whether rows are done: a look waits for the device


def no_clock(_: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass
class Decoded:
    """Tokens of each row without the stop token; queries [R, H, T, D] a layer where recorded, and by what
    their products with keys are scaled there."""

    tokens: list[list[int]]
    queries: list[Tensor]
    steps: int
    scalings: Sequence[float] = ()


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    rows: Sequence[Row],
    new_tokens: int,
    stop: frozenset[int] = frozenset(),
    record: bool = False,
    clock: Clock = no_clock,
    done: Done = lambda r, tokens: None,
) -> Decoded:
    """Decoding of all rows as one batch, at the temperature that they share. Once half of them have ended,
    the others go on without them. `done` is told of each row when it has ended.

    `record` also feeds each row's last token, so that every draft token leaves a query; drafts are greedy.
    """
    require_observable(model)
    fed = new_tokens if record else new_tokens - 1
    decoder = decoder_for(model, rows, max(fed, 1), record)
    decoder.load(rows)
    stops = torch.tensor(sorted(stop), dtype=torch.long, device=model.device)
    look_every = LOOK_EVERY if model.device.type == "cuda" else 1
    tokens, queries = [decoder.token.clone()], list[Tensor]()
    ended = torch.isin(tokens[0][: len(rows), 0], stops)
    said: set[int] = set()
    while len(tokens) <= fed:
        if stop and (len(tokens) - 1) % look_every == 0:
            going = [r for r, over in enumerate(ended.tolist()) if not over]
            if len(rows) - len(going) > len(said):
                so_far = torch.cat(tokens, 1)[: len(rows)].tolist()
                for r in sorted(set(range(len(rows))) - set(going) - said):
                    done(r, _until(so_far[r][:new_tokens], stop))
                    said.add(r)
            if not going and not (record and len(tokens) == 1):
                break
            if not record and len(going) <= len(rows) // 2 and len(tokens) > 1:
                return _without_the_ended(model, rows, decoder, tokens, going, new_tokens, stop, clock, done)
        with clock("decode_token"):
            decoder.step()
        tokens.append(decoder.token.clone())
        if stop:
            ended |= torch.isin(decoder.token[: len(rows), 0], stops)
        if decoder.queries is not None:
            queries.append(decoder.queries.clone())
    table = torch.cat(tokens, 1)[: len(rows), :new_tokens].tolist()
    seen = list(torch.cat(queries, 3)[:, : len(rows)]) if queries else []
    answers = [_until(row, stop) for row in table]
    for r in sorted(set(range(len(rows))) - said):
        done(r, answers[r])
    return Decoded(answers, seen, len(tokens) - 1, decoder.scalings)


def _without_the_ended(
    model: PreTrainedModel,
    rows: Sequence[Row],
    decoder: Decoder,
    before: Sequence[Tensor],
    going: Sequence[int],
    new_tokens: int,
    stop: frozenset[int],
    clock: Clock,
    done: Done,
) -> Decoded:
    """The rows `going` decoded to the end in a smaller batch; the others have their answers in `before`."""
    fed = len(before) - 1
    left = [decoder.cache.row(r, rows[r], fed, decoder.token[r, 0].clone()) for r in going]
    table = torch.cat(list(before), 1)[: len(rows)].tolist()

    def of_all(r: int, tokens: list[int]) -> None:
        done(going[r], table[going[r]][:-1] + tokens)

    rest = decode(model, left, new_tokens - fed, stop, clock=clock, done=of_all)
    for r, tokens in zip(going, rest.tokens, strict=True):
        table[r] = table[r][:-1] + tokens
    return Decoded([_until(row, stop) for row in table], [], fed + rest.steps)


def decode_all(
    model: PreTrainedModel,
    rows: Sequence[Row],
    new_tokens: int,
    stop: frozenset[int],
    at_once: int,
    done: Done = lambda r, tokens: None,
) -> list[list[int]]:
    """Decodes rows in batches of at most `at_once`, like widths together; halves the batch when CUDA runs out
    of memory. `done(r, tokens)` is told of each row as soon as it has ended."""
    answers: dict[int, list[int]] = {}

    def told(places: Sequence[int]) -> Done:
        def note(r: int, tokens: list[int]) -> None:
            answers[places[r]] = tokens
            done(places[r], tokens)

        return note

    left = sorted(range(len(rows)), key=lambda r: rows[r].width)
    while left:
        batch = left[:at_once]
        if length_dependent(model):  # rows of unequal positions would change each other's rotation
            batch = [r for r in batch if rows[r].position == rows[batch[0]].position]
        try:
            decode(model, [rows[r] for r in batch], new_tokens, stop, done=told(batch))
        except torch.OutOfMemoryError:
            if at_once == 1:
                raise UserError(
                    "CUDA ran out of memory while decoding a single row; use a GPU with more memory, "
                    "a smaller model or a shorter length"
                ) from None
            at_once = max(1, min(at_once, len(rows)) // 2)
            log.warning("out of memory: decoding %d rows at once from here on", at_once)
            forget(model)
            torch.cuda.empty_cache()
        left = [r for r in left if r not in answers]
    return [answers[r] for r in range(len(rows))]


def _until(tokens: list[int], stop: frozenset[int]) -> list[int]:
    for i, token in enumerate(tokens):
        if token in stop:
            return tokens[:i]
    return tokens
