"""What lies behind a score: recall of the oracle's choice by layer and head, and which tokens survive."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from lkv.errors import UserError
from lkv.eviction.compact import compact
from lkv.eviction.pipeline import check_budgets
from lkv.eviction.select import Kept
from lkv.interface import Method
from lkv.measure.choices import choose_for, head_recall, oracle_choices
from lkv.measure.conditions import Cell, Choice, Record
from lkv.measure.kept import NAMED, bin_parts, kept_bins
from lkv.measure.reading import decode_samples, read_contexts, read_question
from lkv.measure.samples import samples_of
from lkv.model.chat_template import record_offsets
from lkv.model.load import Loaded
from lkv.results.columns import KEPT_COLUMNS, RECALL_COLUMNS
from lkv.results.csv_files import write_csv


class Looked(NamedTuple):
    """A sample's prompt as it is evicted, each method's choice from it, the oracle's top-C a budget."""

    ids: list[int]
    layers: list[int]  # those that are evicted from
    kv_heads: int
    choices: dict[Cell, Choice]
    best: dict[int, Kept | None]


@torch.no_grad()
def looked(
    loaded: Loaded, record: Record, methods: Sequence[Method], budgets: Sequence[int], seed: int
) -> Looked:
    """What the methods keep of one sample; nothing is decoded but the full cache's answer and drafts."""
    for method in methods:
        check_budgets(method, budgets)
    [sample] = samples_of(loaded, [record], methods, budgets, seed, [])
    read_contexts(loaded, [sample], methods, 0.0)
    read_question(loaded, sample)
    prefilled, whole = sample.context.prefilled, sample.whole
    assert prefilled is not None and whole is not None
    [sample.answer] = decode_samples(loaded, [(sample, row) for row in compact(whole, None)])
    best = oracle_choices(sample, budgets)
    for method in methods:
        choose_for(sample, method, budgets)
    found = prefilled.full_layers, prefilled.kv_heads, sample.context.choices, best
    return Looked(sample.context.ids, *found)


def inspect(
    loaded: Loaded,
    records: Sequence[Record],
    methods: Sequence[Method],
    budgets: Sequence[int],
    study: str,
    seed: int,
    recall_out: str | Path,
    kept_out: str | Path,
) -> None:
    """Writes RECALL_COLUMNS over all `records` (of one task) and KEPT_COLUMNS of the first."""
    if not records:
        raise UserError("the data file has no records; build it again with lkv data")
    named = {"study": study, "model": loaded.name} | {name: records[0][name] for name in NAMED}
    cells = [(method.name, budget) for method in methods for budget in budgets]
    recalls: dict[tuple[str, int], list[Tensor]] = {cell: [] for cell in cells}
    map_rows: list[dict[str, Any]] = []
    for record in tqdm(records, desc=f"inspect {named['task']}@{named['length']}", unit="sample"):
        found = looked(loaded, record, methods, budgets, seed)
        for cell in cells:
            recalls[cell].append(recall(found, *cell).cpu())
        if not map_rows:
            parts = bin_parts(record, record_offsets(loaded.tokenizer, record), len(found.ids))
            map_rows = [
                named | {"sample": record["sample"], "method": method, "budget": budget} | row
                for method, budget in cells
                for row in kept_bins(found.choices[method, budget].kept, len(found.ids), parts)
            ]
            layers = found.layers
    recall_rows = [
        named
        | {"method": method, "budget": budget, "layer": layer, "head": head}
        | {"n": len(values), "recall": value}
        for (method, budget), values in recalls.items()
        for layer, of_layer in zip(layers, torch.stack(values).mean(0).tolist(), strict=True)
        for head, value in enumerate(of_layer)
    ]
    write_csv(recall_out, recall_rows, RECALL_COLUMNS)
    write_csv(kept_out, map_rows, KEPT_COLUMNS)


def recall(found: Looked, method: str, budget: int) -> Tensor:
    """Share of the oracle's top-C in the method's own top-C, nothing pooled or forced: float [L, K]."""
    raw, best = found.choices[method, budget].raw, found.best[budget]
    if raw is None or best is None:  # the whole prompt fits
        return torch.ones(len(found.layers), found.kv_heads)
    return head_recall(raw, best)[:, 0].float()
