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
from typing import Any

import torch
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
    (LookaheadKV and methods like it; in rows of their own). `draft` is the shape of SpecKV's draft model.
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
    context = loaded.context
    rounds = sum(warmups + repeats[length] for length in prompts)
    with tqdm(total=rounds * len(cells), desc="latency", unit="run") as bar:
        for length, ids in prompts.items():
            prompt = torch.tensor([ids], device=loaded.model.device)
            runs: dict[tuple[int, str, int], list[Run]] = defaultdict(list)
            failed: dict[int, str] = {}
            for i, (together, _, _) in enumerate(cells):
                if context is not None and length > context:
                    failed[i] = f"longer than the model's {context:,} tokens"
                elif reason := outputs_differ(loaded, prompt, together[0]):
                    failed[i] = reason
            for turn in range(warmups + repeats[length]):
                for i, (together, way, of_cell) in enumerate(cells):
                    bar.update()
                    if i in failed:
                        continue
                    try:
                        found = measure(loaded, prompt, together, of_cell, way)
                    except torch.OutOfMemoryError:
                        failed[i] = "out of memory"
                        forget(loaded.model)
                        continue
                    if turn >= warmups:
                        for (name, budget), run in found.items():
                            runs[i, name, budget].append(run)
            rows: list[dict[str, Any]] = []
            for i, (together, way, of_cell) in enumerate(cells):
                for method in together:
                    for budget in of_cell:
                        measured = runs[i, method_label(method), budget]
                        facts = timing.facts(method, way, budget, length, measured)
                        if 0 in failed or i in failed:  # without a plain prefill nothing can be compared
                            why = failed.get(i, "plain prefill: " + failed.get(0, "failed"))
                            rows.append({**facts, "phase": "total", "status": why})
                            continue
                        rows += timing.phases(facts, method, budget, length, measured, runs[0, FULL, 0])
                        if method in batched and (most := rows[-1]["max_batch"]) and way == "whole":
                            rows.append(batch_row(timing, facts, prompt, method, budget, most))
            forget(loaded.model)
            yield rows


def _cells(
    methods: Sequence[Method | None], budgets: Sequence[int], ways: Sequence[str]
) -> list[tuple[list[Method | None], str, list[int]]]:
    """What is run as one: methods that share a prefill, the way, budgets. The plain prefill comes first."""
    cells: list[tuple[list[Method | None], str, list[int]]] = [([None], "whole", [0])]
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
