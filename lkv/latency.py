"""Latency: what each method adds to a plain prefill, phase by phase, interleaved in one process.

Phases: prefill, rows (what extra rows add to the prefill of a single pass), observe, draft, select, compact;
`total` is their sum and carries the overhead. first_token and decode_token are the first and the later decode
steps from the kept cache.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from lkv import device as devices
from lkv.data.documents import haystack
from lkv.engine import check_budgets, compact, decode, prefill_observed, rides_along
from lkv.errors import UserError
from lkv.interface import Method
from lkv.models import Loaded
from lkv.registry import FULL
from lkv.select import select

DECODE_STEPS = 8
ADDED = ("rows", "observe", "draft", "select", "compact")
PHASES = ("prefill", *ADDED, "first_token", "decode_token", "total")


def filler(tokenizer: PreTrainedTokenizerBase, length: int) -> list[int]:
    """`length` tokens of running text: times do not depend on what a prompt says."""
    ids = tokenizer(haystack("pydoc")[1], add_special_tokens=False).input_ids
    return (ids * (length // len(ids) + 1))[:length]


class Stopwatch:
    """Seconds per phase; time inside a nested phase counts for that one alone."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.laps: dict[str, list[float]] = defaultdict(list)
        self._open: list[list[Any]] = []  # phase, seconds so far

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = self._now()
        self._open.append([phase, 0.0])
        try:
            yield
        finally:
            whole = self._now() - start
            _, nested = self._open.pop()
            self.laps[phase].append(whole - nested)
            if self._open:
                self._open[-1][1] += whole

    def total(self, phase: str) -> float:
        return sum(self.laps[phase])

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@torch.no_grad()
def measure(loaded: Loaded, ids: Tensor, method: Method | None, budget: int) -> dict[str, float]:
    """One run of a prompt [1, N]: seconds per phase, cache bytes, CUDA peaks (nan on the CPU)."""
    model, cuda = loaded.model, loaded.model.device.type == "cuda"
    watch = Stopwatch(model.device)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    # No stop tokens: every draft and every decode has its full length.
    prefilled, importance = prefill_observed(model, ids, method, budget, watch)
    kept = None
    if method is not None and importance is not None:
        with watch("select"):
            kept = select(importance, method.recipe, budget, prefilled.kv_heads)
        with watch("compact"):
            [row] = compact(prefilled, kept)
    else:
        [row] = compact(prefilled, None)
    peak_prefill = torch.cuda.max_memory_allocated() if cuda else np.nan
    del prefilled, importance, kept
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    steps = Stopwatch(model.device)
    decode(model, [row], DECODE_STEPS + 1, clock=steps)
    first, *later = steps.laps["decode_token"]
    found = {phase: watch.total(phase) for phase in ("prefill", "observe", "draft", "select", "compact")}
    return {
        **found,
        "total": sum(found.values()),
        "first_token": first,
        "decode_token": float(np.median(later)),
        "cache_bytes": row.bytes,
        "peak_prefill_bytes": peak_prefill,
        "peak_decode_bytes": torch.cuda.max_memory_allocated() if cuda else np.nan,
    }


def latency(
    loaded: Loaded,
    prompts: dict[int, list[int]],
    methods: Sequence[Method | None],
    budgets: Sequence[int],
    repeats: int,
    warmups: int,
    study: str,
    weights: str = "real",
) -> list[dict[str, Any]]:
    """Rows of latency.csv. `prompts` maps a length to its token ids; None among methods is the full cache.

    Each repeat runs every method once, the plain prefill first, so that a drift of the machine's speed hits
    all alike; differences are taken within a repeat.
    """
    if None not in methods:
        raise UserError("latency needs 'full' among its methods: overheads are measured against it")
    for method in methods:
        if method is not None:
            check_budgets(method, budgets)
    cells: list[tuple[Method | None, int]] = [(None, 0)]
    cells += [(method, budget) for method in methods if method is not None for budget in budgets]
    rows: list[dict[str, Any]] = []
    rounds = len(prompts) * (warmups + repeats)
    with tqdm(total=rounds * len(cells), desc="latency", unit="run") as bar:
        for length, ids in prompts.items():
            prompt = torch.tensor([ids], device=loaded.model.device)
            runs: dict[int, list[dict[str, float]]] = defaultdict(list)
            failed: dict[int, str] = {}
            for turn in range(warmups + repeats):
                for i, (method, budget) in enumerate(cells):
                    bar.update()
                    if i in failed:
                        continue
                    try:
                        run = measure(loaded, prompt, method, budget)
                    except torch.OutOfMemoryError:
                        failed[i] = "out of memory"
                        torch.cuda.empty_cache()
                        continue
                    if turn >= warmups:
                        runs[i].append(run)
            for i, (method, budget) in enumerate(cells):
                cell = _facts(loaded, method, budget, length, study, weights)
                if 0 in failed or i in failed:  # without a plain prefill there is nothing to compare with
                    why = failed.get(i, "plain prefill " + failed.get(0, "failed"))
                    rows.append({**cell, "phase": "total", "status": why})
                else:
                    rows += _phases(cell, runs[i], runs[0])
    return rows


def _facts(
    loaded: Loaded, method: Method | None, budget: int, length: int, study: str, weights: str
) -> dict[str, Any]:
    single = method is not None and method.ahead is not None and rides_along(loaded.model)
    return {
        "study": study,
        "model": loaded.name,
        "weights": weights,
        "length": length,
        "budget": budget,
        "method": FULL if method is None else method.name,
        "implementation": "torch, single pass" if single else "torch",
        "batch": 1,
        "status": "ok",
        "device": devices.describe(loaded.model.device)[0],
        "backend": loaded.backend,
        "dtype": loaded.dtype,
    }


def _phases(
    cell: dict[str, Any], runs: list[dict[str, float]], plain: list[dict[str, float]]
) -> list[dict[str, Any]]:
    """A row a phase from paired repeats; milliseconds."""
    single = "single pass" in cell["implementation"]
    ms = {phase: 1e3 * np.array([run.get(phase, 0.0) for run in runs]) for phase in PHASES}
    base = {phase: 1e3 * np.array([run[phase] for run in plain]) for phase in ("prefill", "total")}
    if single:
        # The appended rows ride along in the prefill: what they cost is a paired difference.
        ms["rows"] = ms["prefill"] - base["prefill"]
        ms["prefill"] = base["prefill"]
    rows = []
    for phase in PHASES:
        if phase != "total" and not ms[phase].any():
            continue
        low, middle, high = np.percentile(ms[phase], [10, 50, 90])
        rows.append({**cell, "phase": phase, "median_ms": middle, "p10_ms": low, "p90_ms": high})
        rows[-1]["repeats"] = len(runs)
    overhead = float(np.median(sum(ms[phase] for phase in ADDED)))
    rows[-1] |= {
        "overhead_ms": overhead,
        "overhead_pct": 100 * overhead / float(np.median(base["prefill"])),
        "ttft_diff_ms": float(np.median(ms["total"] - base["total"])),
        "cache_bytes": int(runs[0]["cache_bytes"]),
        "peak_prefill_bytes": max(run["peak_prefill_bytes"] for run in runs),
        "peak_decode_bytes": max(run["peak_decode_bytes"] for run in runs),
        "tokens_per_s": 1e3 / float(np.median(ms["decode_token"])),
    }
    return rows
