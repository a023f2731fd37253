"""Conditions: each method at each budget, with the journal's key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from lkv.eviction.select import Kept
from lkv.files.json_files import fingerprint
from lkv.interface import Method
from lkv.registry import FULL

Record: TypeAlias = dict[str, Any]
Cell: TypeAlias = tuple[str, int]  # method, budget


class Choice(NamedTuple):
    """What a method keeps of a prompt: with its recipe, by its bare importance, and what that costs."""

    kept: Kept | None
    raw: Kept | None
    bytes: int


def protocol_label(record: Record, temperature: float) -> str:
    named = f" temperature={temperature:g}" if temperature else ""
    return f"{record['protocol']}{named}"


def journal_keys(
    record: Record, prompt: list[Any], methods: Sequence[Method], budgets: Sequence[int], facts: list[Any]
) -> dict[Cell, str]:
    """(method, budget) → journal key, which changes with anything that may change the result."""
    named = ("task", "sample", "protocol", "max_new_tokens", "stops", "min_new_tokens")
    content = [*prompt, *(record[name] for name in named)]
    cells = {(FULL, 0): fingerprint(*facts, *content, FULL)}
    for method in methods:
        for budget in budgets:
            cells[method.name, budget] = fingerprint(*facts, *content, method.made_of, budget)
    return cells
