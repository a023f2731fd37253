"""Samples of a benchmark, ready to be asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lkv.cache.sizes import entry_bytes
from lkv.eviction.prefilled import Prefilled
from lkv.interface import Method
from lkv.measure.conditions import Cell, Choice, Record, journal_keys
from lkv.model.chat_template import record_ids, record_parts
from lkv.model.device import memory
from lkv.model.load import Loaded
from lkv.registry import FULL
from lkv.results.journal import Journal

# Decoded as one batch: what keeps the device busy, and no more, because a kill loses what is being decoded.
ROWS_AT_ONCE = {"cpu": 32, "cuda": 512}


@dataclass(eq=False)
class _Context:
    """What is evicted: a prompt's ids, and once they are read its cache and each method's choice from it."""

    ids: list[int]
    seed: int
    prefilled: Prefilled | None = None
    choices: dict[Cell, Choice] = field(default_factory=dict)


@dataclass(eq=False)
class PendingSample:
    """One record: its context (shared with other questions on it where those are read after the eviction),
    its question's ids (none where the question is part of what is evicted), its cells' journal keys."""

    record: Record
    context: _Context
    question: list[int]
    cells: dict[Cell, str]
    missing: dict[Cell, str] = field(default_factory=dict)
    answer: list[int] | None = None  # the full cache's, where it is known
    asked: Prefilled | None = None  # the context, its question known
    whole: Prefilled | None = None  # the context, its question read


def samples_of(
    loaded: Loaded,
    records: Sequence[Record],
    methods: Sequence[Method],
    budgets: Sequence[int],
    seed: int,
    facts: list[Any],
) -> Iterator[PendingSample]:
    """Samples of one context follow each other."""
    for shared in _by_context(records):
        context: _Context | None = None
        for record in shared:
            ids, question = _asked(loaded, record)
            if context is None:
                context = _Context(ids, seed + record["sample"])
            cells = journal_keys(record, [ids, question, context.seed], methods, budgets, facts)
            yield PendingSample(record, context, question, cells)


def waves_of(
    loaded: Loaded, samples: Iterator[PendingSample], journal: Journal
) -> Iterator[list[PendingSample]]:
    """Samples that are answered together: their caches and rows fill a third of the memory at most."""
    room = memory(loaded.model.device) // 3
    entry = entry_bytes(loaded.model)
    wave: list[PendingSample] = []
    used = rows = 0
    for sample in samples:
        sample.missing = {cell: key for cell, key in sample.cells.items() if key not in journal.cells}
        sample.answer = journal.cells.get(sample.cells[FULL, 0], {}).get("tokens")
        new = sample.record["max_new_tokens"]
        length = len(sample.context.ids) + len(sample.question)
        # A row is there twice: kept, and in the storage that it is decoded from.
        kept = [2 * (min(budget, length) + new) for _, budget in sample.missing if budget]
        needed = entry * (2 * (length + new) + sum(kept)) if sample.missing else 0
        own_context = not wave or wave[-1].context is not sample.context
        if wave and own_context and (used + needed > room or rows >= ROWS_AT_ONCE[loaded.model.device.type]):
            yield wave
            wave, used, rows = [], 0, 0
        wave.append(sample)
        used, rows = used + needed, rows + len(kept)
    if wave:
        yield wave


def _by_context(records: Sequence[Record]) -> list[list[Record]]:
    """Records that share a prefill: alone, but for questions on one context that is read before them."""
    groups: dict[Any, list[Record]] = {}
    for index, record in enumerate(records):
        context = index if record["question_aware"] else record["input"][: record["question_at"]]
        groups.setdefault(context, []).append(record)
    return list(groups.values())


def _asked(loaded: Loaded, record: Record) -> tuple[list[int], list[int]]:
    """(what is evicted, what is read after it and before the answer)."""
    if record["question_aware"]:
        return record_ids(loaded.tokenizer, record), []
    return record_parts(loaded.tokenizer, record)


def stop_tokens(loaded: Loaded, record: Record) -> frozenset[int]:
    """The model's stop tokens and the task's own: the last token of each of its stop texts."""
    ends = [loaded.tokenizer(text, add_special_tokens=False).input_ids for text in record["stops"]]
    return loaded.stop | frozenset(int(ids[-1]) for ids in ends)
