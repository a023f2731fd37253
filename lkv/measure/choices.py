"""Which entries each condition keeps, and how many of the oracle's are among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lkv.cache.rows import Row
from lkv.cache.sizes import kept_bytes, stored_bytes
from lkv.eviction.answer import answer_tail
from lkv.eviction.compact import compact
from lkv.eviction.extend import extend
from lkv.eviction.importance import top_recall
from lkv.eviction.pipeline import select_entries
from lkv.eviction.prefill import observe_tail
from lkv.eviction.select import PLAIN, Kept, select_budgets
from lkv.interface import Method
from lkv.measure.conditions import Cell, Choice
from lkv.measure.samples import PendingSample
from lkv.registry import FULL


def choose_all(
    sample: PendingSample, methods: Sequence[Method], budgets: Sequence[int]
) -> tuple[dict[Cell, list[Row]], dict[Cell, dict[str, Any]]]:
    """Of each missing cell the row to decode (the full cache's is known), and what its CSV row says of it."""
    prefilled, asked = sample.context.prefilled, sample.asked
    assert prefilled is not None and asked is not None
    stored = [prefilled.length] * len(prefilled.full_layers)
    best = oracle_choices(sample, budgets)
    rows: dict[Cell, list[Row]] = {}
    facts: dict[Cell, dict[str, Any]] = {}
    recalls: list[Tensor] = []
    for method in methods:
        needed = [budget for budget in budgets if (method.name, budget) in sample.missing]
        for budget, choice in zip(needed, choose_for(sample, method, needed), strict=True):
            at_hand, kept = prefilled, choice.kept
            if asked.question is not None:
                at_hand, kept = extend(prefilled, kept, asked.question), None
            rows[method.name, budget] = compact(at_hand, kept)
            device = prefilled.ids.device
            recalls += [_recall(found, best[budget], device) for found in (choice.kept, choice.raw)]
            counts = stored if choice.kept is None else choice.kept.counts
            facts[method.name, budget] = {
                "kept_mean": sum(counts) / len(counts),
                "kept_bytes": choice.bytes,
            }
    values = iter(torch.stack(recalls).tolist() if recalls else [])  # one wait for the device
    for of_cell in facts.values():
        of_cell |= {"recall": next(values), "recall_raw": next(values)}
    if (FULL, 0) in sample.missing:
        facts[FULL, 0] = {
            "recall": None,
            "recall_raw": None,
            "kept_mean": prefilled.length,
            "kept_bytes": stored_bytes(prefilled.cache),
        }
    return rows, facts


def oracle_choices(sample: PendingSample, budgets: Sequence[int]) -> dict[int, Kept | None]:
    """The entries that the full cache's own answer attends to most, by budget."""
    asked = sample.asked
    assert asked is not None and sample.answer is not None
    asked.answers = [sample.answer]
    target = observe_tail(asked, answer_tail(asked))
    best = select_budgets([target] * len(budgets), PLAIN, budgets, asked.kv_heads)
    return dict(zip(budgets, best, strict=True))


def choose_for(sample: PendingSample, method: Method, budgets: Sequence[int]) -> list[Choice]:
    """What the method keeps; chosen once a context, unless the choice depends on the answer."""
    context = sample.context
    new = [b for b in budgets if method.knows_answer or (method.name, b) not in context.choices]
    view = sample.asked if method.knows_answer else context.prefilled
    assert view is not None
    selections = select_entries(view, method, new) if new else []
    importances = [selection.importance or [] for selection in selections]
    raws = select_budgets(importances, PLAIN, new, view.kv_heads)
    for budget, (kept, _), raw in zip(new, selections, raws, strict=True):
        size = kept_bytes(view.cache, kept.counts if kept else None)
        context.choices[method.name, budget] = Choice(kept, raw, size)
    return [context.choices[method.name, budget] for budget in budgets]


def head_recall(kept: Kept, best: Kept) -> Tensor:
    """Share of the oracle's top-C that was kept, a layer, prompt and KV head: float [L, B, K]."""
    places = torch.arange(kept.indices.shape[-1], device=kept.indices.device)
    counts = torch.tensor(kept.counts, device=places.device)[:, None, None, None]
    real = torch.where(places < counts, kept.indices, -1 - places)  # what is padding equals nothing
    return top_recall(real, best.indices)


def _recall(kept: Kept | None, best: Kept | None, device: torch.device) -> Tensor:
    """Mean of head_recall over layers and KV heads; a scalar on the device."""
    if kept is None or best is None:
        return torch.ones([], device=device)
    return head_recall(kept, best).mean()
