"""What lies behind a score: recall of the oracle's choice by layer and head, and which tokens survive."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lkv.chat import record_offsets
from lkv.errors import UserError
from lkv.evaluate import Looked, Record, head_recall, looked
from lkv.interface import Method
from lkv.models import Loaded
from lkv.records import KEPT_COLUMNS, RECALL_COLUMNS, write_csv
from lkv.select import Kept

BINS = 192  # of a prompt, at most: what a figure can show
ANSWER, QUESTION, TEMPLATE = "answer", "question", "template"  # KEPT_COLUMNS' part
NAMED = ("benchmark", "task", "length")


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


def kept_share(kept: Kept | None, length: int) -> Tensor:
    """Share of layers and KV heads that keep each token of a prompt: float [length]; None keeps all."""
    if kept is None:
        return torch.ones(length)
    heads = [head for layer in kept for head in layer[0]]
    return torch.cat(heads).bincount(minlength=length).cpu() / len(heads)


def kept_bins(kept: Kept | None, length: int, parts: Sequence[str]) -> list[dict[str, Any]]:
    """KEPT_COLUMNS' start, end, kept and part of a prompt cut into `len(parts)` bins (see bin_edges)."""
    share = kept_share(kept, length)
    return [
        {"start": start, "end": end, "kept": float(share[start:end].mean()), "part": part}
        for (start, end), part in zip(bin_edges(length), parts, strict=True)
    ]


def bin_edges(length: int) -> list[tuple[int, int]]:
    """Bins of tokens [start, end), equally wide but for the last, BINS at most."""
    width = math.ceil(length / BINS)
    return [(start, min(start + width, length)) for start in range(0, length, width)]


def bin_parts(record: Mapping[str, Any], offsets: Sequence[tuple[int, int]] | None, length: int) -> list[str]:
    """What lies in each bin of a prompt of `length` tokens, by the tokens' `offsets` in the record's input.

    A bin that touches the answer is `answer`; else one that touches the question is `question`; one wholly
    outside the input is `template`. Empty: other context, or nothing known.
    """
    if offsets is None:
        return [""] * len(bin_edges(length))
    text, question_at = record["input"], record["question_at"]
    context = text[:question_at] if question_at else text
    answers = _places(context, record["outputs"])

    def part(spans: Sequence[tuple[int, int]]) -> str:
        if any(start < high and low < end for start, end in spans for low, high in answers):
            return ANSWER
        if question_at and any(question_at < end for _, end in spans):
            return QUESTION
        return TEMPLATE if all(end < 0 for _, end in spans) else ""

    assert len(offsets) == length, "offsets of another prompt"
    return [part(offsets[start:end]) for start, end in bin_edges(length)]


def _places(text: str, outputs: Sequence[str]) -> list[tuple[int, int]]:
    """Where one of the outputs stands in the text, as whole words: characters [start, end)."""
    words = [rf"(?<!\w){re.escape(output)}(?!\w)" for output in outputs if output.strip()]
    return [match.span() for word in words for match in re.finditer(word, text)]
