"""Latency: what each method adds to a plain prefill, phase by phase, interleaved in one process.

Phases: prefill, rows (that ride along in a single pass, at the plain prefill's rate), lora (the adapter's
products on them), observe (a second pass of such rows with it), draft, select, compact; `total` is their sum
and carries the overhead. first_token and decode_token are the first and the later decode steps from the kept
cache, decode_batch a step of as many rows as fit. On CUDA phases are timed by events, so that nothing waits
between them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor
from tqdm import tqdm

from lkv.errors import UserError
from lkv.eviction.decoder import forget
from lkv.eviction.pipeline import check_budgets
from lkv.interface import Method, PromptRows
from lkv.measure.latency_rows import Timing, batch_row
from lkv.measure.timing import Run, alike, measure, method_label, outputs_differ
from lkv.model.load import Loaded
from lkv.model.shape import Shape
from lkv.registry import FULL

# What is run as one: methods that share a prefill, when they evict, their budgets.
Cell: TypeAlias = "tuple[list[Method | None], str, list[int]]"


def latency(
    loaded: Loaded,
    prompts: dict[int, list[int]],
    methods: Sequence[Method | None],
    budgets: Sequence[int],
    repeats: Mapping[int, int],
    warmups: int,
    study: str,
    weights: str = "real",
    ways: Sequence[str] = ("whole",),
    draft: Shape | None = None,
    batches: bool = False,
) -> Iterator[list[dict[str, Any]]]:
    """Rows of latency.csv, length by length. `prompts` maps a length to its token ids, `repeats` to its timed
    runs; None among methods is the full cache.

    Each repeat runs every method once, the plain prefill first, so that a drift of the machine's speed hits
    all alike; differences are taken within a repeat. `ways` (WAYS): evict after the pass, or layer by layer
    (LookaheadKV and methods like it; in rows of their own). `draft` is the shape of a draft model.
    With `batches` a decode step of as many rows as fit is timed too, of the full cache and the last method.
    """
    if None not in methods:
        raise UserError("latency needs 'full' among its methods: overheads are measured against it")
    for method in methods:
        if method is not None:
            check_budgets(method, budgets)
    timing = Timing(loaded, study, weights, draft)
    cells = _cells(methods, budgets, ways)
    batched = [None, methods[-1]] if batches else []  # what is kept weighs the same under every method
    rounds = sum(warmups + repeats[length] for length in prompts)
    with tqdm(total=rounds * len(cells), desc="latency", unit="run") as bar:
        for length, ids in prompts.items():
            prompt = torch.tensor([ids], device=loaded.model.device)
            failed = _known_failures(loaded, prompt, cells)
            runs = _runs(loaded, prompt, cells, failed, warmups, repeats[length], bar)
            yield _rows(timing, prompt, cells, failed, runs, batched)
            forget(loaded.model)


def _known_failures(loaded: Loaded, prompt: Tensor, cells: Sequence[Cell]) -> dict[int, str]:
    """Why cells cannot be timed at this length, by their index."""
    length, failed = prompt.shape[1], dict[int, str]()
    for i, (together, _, _) in enumerate(cells):
        if loaded.context is not None and length > loaded.context:
            failed[i] = f"longer than the model's {loaded.context:,} tokens"
        elif reason := outputs_differ(loaded, prompt, together[0]):
            failed[i] = reason
    return failed


def _runs(
    loaded: Loaded,
    prompt: Tensor,
    cells: Sequence[Cell],
    failed: dict[int, str],
    warmups: int,
    repeats: int,
    bar: tqdm[NoReturn],
) -> dict[tuple[int, str, int], list[Run]]:
    """Timed runs by cell, method and budget, every cell in turn; what runs out of memory joins `failed`."""
    runs: dict[tuple[int, str, int], list[Run]] = defaultdict(list)
    for turn in range(warmups + repeats):
        for i, (together, way, budgets) in enumerate(cells):
            bar.update()
            if i in failed:
                continue
            try:
                found = measure(loaded, prompt, together, budgets, way)
            except torch.OutOfMemoryError:
                failed[i] = "out of memory"
                forget(loaded.model)
                continue
            if turn >= warmups:
                for (name, budget), run in found.items():
                    runs[i, name, budget].append(run)
    return runs


def _rows(
    timing: Timing,
    prompt: Tensor,
    cells: Sequence[Cell],
    failed: Mapping[int, str],
    runs: Mapping[tuple[int, str, int], list[Run]],
    batched: Sequence[Method | None],
) -> list[dict[str, Any]]:
    """The rows of one length."""
    length, rows = prompt.shape[1], list[dict[str, Any]]()
    for i, (together, way, budgets) in enumerate(cells):
        for method in together:
            for budget in budgets:
                measured = runs.get((i, method_label(method), budget), [])
                facts = timing.facts(method, way, budget, length, measured)
                if 0 in failed or i in failed:  # without a plain prefill nothing can be compared
                    why = failed.get(i, "plain prefill: " + failed.get(0, "failed"))
                    rows.append({**facts, "phase": "total", "status": why})
                    continue
                rows += timing.phases(facts, method, budget, length, measured, runs[0, FULL, 0])
                if method in batched and (most := rows[-1]["max_batch"]) and way == "whole":
                    rows.append(batch_row(timing, facts, prompt, method, budget, most))
    return rows


def _cells(methods: Sequence[Method | None], budgets: Sequence[int], ways: Sequence[str]) -> list[Cell]:
    """What is run as one: methods that share a prefill, the way, budgets. The plain prefill comes first."""
    cells: list[Cell] = [([None], "whole", [0])]
    evicting = [method for method in methods if method is not None]
    if "whole" in ways:
        groups: list[list[Method | None]] = []
        for method in evicting:
            group = next((group for group in groups if alike(group[0], method)), None)
            if group is None:
                groups.append([method])
            else:
                group.append(method)
        cells += [(group, "whole", list(budgets)) for group in groups]
    if "layerwise" in ways:
        rides = [m for m in evicting if isinstance(m.observers, PromptRows) or m.tail_before_prefill]
        cells += [([method], "layerwise", [budget]) for method in rides for budget in budgets]
    return cells
