"""Rows of latency.csv from what was timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lkv.cache.sizes import entry_bytes
from lkv.eviction.decode import decode
from lkv.eviction.decoder import forget
from lkv.eviction.observation import allows_single_pass
from lkv.eviction.pipeline import evict_to
from lkv.eviction.single_pass import prefill_for
from lkv.interface import Method
from lkv.measure.stopwatch import Stopwatch
from lkv.measure.timing import DECODE_STEPS, NEW_TOKENS, Run
from lkv.model import device
from lkv.model.flops import row_share
from lkv.model.forward import implementation
from lkv.model.load import Loaded
from lkv.model.shape import Shape, shape_of
from lkv.registry import FULL

MOST_ROWS = 512  # decoded at once: more rows of a small cache bring little
ADDED = ("rows", "lora", "observe", "draft", "select", "compact")
PHASES = ("prefill", *ADDED, "first_token", "decode_token", "total")  # and decode_batch, measured once


def batch_row(
    timing: Timing, facts: dict[str, Any], prompt: Tensor, method: Method | None, budget: int, most: int
) -> dict[str, Any]:
    """The row of phase decode_batch: a step of `most` rows or fewer, all of the same kept cache."""
    facts = facts | {"phase": "decode_batch", "max_batch": most}
    loaded = timing.loaded
    forget(loaded.model)
    try:
        prefilled = prefill_for(loaded.model, prompt, method)
        [row] = evict_to(prefilled, method, budget)
        del prefilled
        batch = 1 << (min(most, MOST_ROWS).bit_length() - 1)
        steps = Stopwatch(loaded.model.device)
        decode(loaded.model, [row] * batch, DECODE_STEPS + 1, clock=steps)
    except torch.OutOfMemoryError:
        return facts | {"status": "out of memory"}
    ms = 1e3 * np.array(steps.laps()["decode_token"][1:])
    low, middle, high = np.percentile(ms, [10, 50, 90])
    found = {"median_ms": middle, "p10_ms": low, "p90_ms": high, "repeats": len(ms), "batch": batch}
    return facts | found | {"tokens_per_s": 1e3 * batch / middle}


@dataclass(frozen=True)
class Timing:
    """What all rows of a study share, and how runs become rows."""

    loaded: Loaded
    study: str
    weights: str
    draft: Shape | None

    @property
    def shape(self) -> Shape:
        return shape_of(self.loaded.model)

    def facts(
        self, method: Method | None, way: str, budget: int, length: int, runs: Sequence[Run]
    ) -> dict[str, Any]:
        named = [implementation(self.loaded.model)]
        if method is not None and method.tail_before_prefill and allows_single_pass(self.loaded.model):
            named.append("single pass" if not runs or runs[0].ridden else "second pass")
        if way == "layerwise":
            named.append("layer by layer")
        return {
            "study": self.study,
            "model": self.loaded.name,
            "weights": self.weights,
            "length": length,
            "budget": budget,
            "method": FULL if method is None else method.name,
            "implementation": ", ".join(named),
            "batch": 1,
            "status": "ok",
            "device": device.describe(self.loaded.model.device)[0],
            "backend": self.loaded.backend,
            "dtype": self.loaded.dtype,
        }

    def phases(
        self,
        facts: dict[str, Any],
        method: Method | None,
        budget: int,
        length: int,
        runs: Sequence[Run],
        plain: Sequence[Run],
    ) -> list[dict[str, Any]]:
        """A row a phase from paired repeats; milliseconds."""
        ms = {phase: 1e3 * np.array([run.seconds.get(phase, 0.0) for run in runs]) for phase in PHASES}
        base = 1e3 * np.array([run.seconds["prefill"] for run in plain])
        ttft = np.sum([ms[phase] for phase in ("prefill", *ADDED)], 0)
        if runs[0].ridden:
            # A paired difference of prefills is below its noise, and often negative (kernels fit some lengths
            # better than others): rows count at the rate of the plain prefill, by their operations.
            ms["rows"] = base * row_share(self.shape, runs[0].ridden, length)
            ms["prefill"] = base
        ms["total"] = np.sum([ms[phase] for phase in ("prefill", *ADDED)], 0)
        rows = []
        for phase in PHASES:
            if phase != "total" and not ms[phase].any():
                continue
            low, middle, high = np.percentile(ms[phase], [10, 50, 90])
            rows.append({**facts, "phase": phase, "median_ms": middle, "p10_ms": low, "p90_ms": high})
            rows[-1]["repeats"] = len(runs)
        overhead = float(np.median(np.sum([ms[phase] for phase in ADDED], 0)))
        theory = None
        if method is not None and self.loaded.model.device.type == "cuda":
            theory = method.theory and method.theory(self.shape, length, budget, self.draft)
        rows[-1] |= {
            "overhead_ms": overhead,
            "overhead_pct": 100 * overhead / float(np.median(base)),
            "ttft_diff_ms": float(np.median(ttft - base)),
            "theory_ms": None if theory is None else 1e3 * theory,
            "cache_bytes": runs[0].cache_bytes,
            "peak_prefill_bytes": max(run.peak_prefill for run in runs),
            "peak_decode_bytes": max(run.peak_decode for run in runs),
            "tokens_per_s": 1e3 / float(np.median(ms["decode_token"])),
            "max_batch": self.max_batch(runs[0].cache_bytes),
        }
        return rows

    def max_batch(self, cache_bytes: int) -> int | None:
        """Rows of this cache and NEW_TOKENS more that fit beside the weights; None on the CPU."""
        if self.loaded.model.device.type != "cuda":
            return None
        weights = sum(p.numel() * p.element_size() for p in self.loaded.model.parameters())
        row = cache_bytes + NEW_TOKENS * entry_bytes(self.loaded.model)
        return int(0.9 * (device.memory(self.loaded.model.device) - weights) // row)
