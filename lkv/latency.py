"""Latency: what each method adds to a plain prefill, phase by phase, interleaved in one process.

Phases: prefill, rows (that ride along in a single pass, at the plain prefill's rate), lora (the adapter's
products on them), observe (a second pass of such rows with it), draft, select, compact; `total` is their sum
and carries the overhead. first_token and decode_token are the first and the later decode steps from the kept
cache, decode_batch a step of as many rows as fit. On CUDA phases are timed by events, so that nothing waits
between them.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lkv import device as devices
from lkv import second
from lkv.cache import Row, entry_bytes
from lkv.data.documents import haystack
from lkv.decode import Clock, decode, forget, held_bytes
from lkv.engine import check_budgets, evicted, prefill_layerwise, prefill_scored, score_errors
from lkv.errors import UserError
from lkv.forward import implementation
from lkv.interface import Adapter, Method, PromptRows, Tail
from lkv.models import Loaded, shape_of
from lkv.prefill import rides_along
from lkv.registry import FULL
from lkv.theory import Shape, overhead_s, row_share

DECODE_STEPS = 6
NEW_TOKENS = 128  # that a row of the largest batch has room for
MOST_ROWS = 512  # decoded at once: more rows of a small cache bring little
ADDED = ("rows", "lora", "observe", "draft", "select", "compact")
PHASES = ("prefill", *ADDED, "first_token", "decode_token", "total")  # and decode_batch, measured once
WAYS = ("whole", "layerwise")
BOUND = 1e-2  # relative error of the scores, against the reference in float32, above which nothing is timed

Times: TypeAlias = dict[str, float]  # seconds


def filler(tokenizer: PreTrainedTokenizerBase, length: int) -> list[int]:
    """`length` tokens of running text: times do not depend on what a prompt says."""
    ids = tokenizer(haystack("pydoc")[1], add_special_tokens=False).input_ids
    return (ids * (length // len(ids) + 1))[:length]


class Stopwatch:
    """Seconds per phase; time inside a nested phase counts for that one alone."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self._laps: list[tuple[str, Any, Any, int | None]] = []  # phase, start, end, the phase it is within
        self._open: list[int] = []

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        place = len(self._laps)
        self._laps.append((phase, self._now(), None, self._open[-1] if self._open else None))
        self._open.append(place)
        try:
            yield
        finally:
            self._open.pop()
            self._laps[place] = (*self._laps[place][:2], self._now(), self._laps[place][3])

    def laps(self) -> dict[str, list[float]]:
        """Every lap's seconds, less the laps within it, by phase; waits for the device."""
        if self.cuda:
            torch.cuda.synchronize()
        whole = [self._between(start, end) for _, start, end, _ in self._laps]
        own = list(whole)
        for seconds, (*_, within) in zip(whole, self._laps, strict=True):
            if within is not None:
                own[within] -= seconds
        found: dict[str, list[float]] = defaultdict(list)
        for seconds, (phase, *_) in zip(own, self._laps, strict=True):
            found[phase].append(seconds)
        return found

    def totals(self) -> Times:
        return defaultdict(float, {phase: sum(laps) for phase, laps in self.laps().items()})

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1000 if self.cuda else end - start


@dataclass(frozen=True)
class _Timed:
    """An adapter whose own products are a phase."""

    adapter: Adapter
    clock: Clock

    def add(
        self, model: PreTrainedModel, layer: int, names: Sequence[str], inputs: Tensor, outs: list[Tensor]
    ) -> list[Tensor]:
        with self.clock("lora"):
            return self.adapter.add(model, layer, names, inputs, outs)

    def hooked(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        return self.adapter.hooked(model)


@dataclass
class Run:
    """One run of one cell: seconds by phase, the cache that is left, the rows that rode along in the prefill,
    CUDA's peaks (nan on the CPU)."""

    seconds: Times
    cache_bytes: int
    ridden: int
    peak_prefill: float = math.nan
    peak_decode: float = math.nan


def timed(method: Method | None, clock: Clock, ridden: list[int]) -> Method | None:
    """The method; where its tail rides along, the rows are noted and the adapter's products are a phase."""
    if method is None or method.ahead is None:
        return method
    ahead: Callable[..., Tail] = method.ahead

    def with_clock(*given: Any) -> Tail:
        tail = ahead(*given)
        ridden.append(tail.rows)
        return tail if tail.adapter is None else replace(tail, adapter=_Timed(tail.adapter, clock))

    return replace(method, ahead=with_clock)


@torch.no_grad()
def measure(
    loaded: Loaded, ids: Tensor, methods: Sequence[Method | None], budgets: Sequence[int], way: str = "whole"
) -> dict[tuple[str, int], Run]:
    """One run of a prompt [1, N]: by method's name and budget. All share the prefill, whose phases stand in
    each: `methods` must look alike (`alike`).

    No stop tokens: every draft and every decode has its full length. Nothing waits for the device in between.
    """
    model, cuda = loaded.model, loaded.model.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    ridden: list[int] = []
    watch = Stopwatch(model.device)
    cells = [(method, budget) for method in methods for budget in budgets]
    clocks = [Stopwatch(model.device) for _ in cells]
    first = timed(methods[0], watch, ridden)
    rows: list[Row] = []
    if way == "layerwise" and budgets[0] < ids.shape[1]:  # larger ones evict nothing, in whichever way
        [(_, budget)] = cells  # layer by layer, each budget has a prefill of its own
        prefilled, rows = prefill_layerwise(model, ids, first, budget, watch)
    else:
        prefilled, scores = prefill_scored(model, ids, first, watch)
        if scores is None:  # a tail that is known ahead may yet be read in a second pass
            ridden.clear()
        for (method, budget), clock in zip(cells, clocks, strict=True):
            # A copy each: the model's own answer, once drafted, would cost the next budget nothing.
            rows += evicted(replace(prefilled), scores, method, budget, clock)
        del scores
    shared = watch.totals()
    peak = math.nan
    if cuda:  # what is kept between runs is the method's own only where it looked in a second pass
        again = first is not None and first.ahead is not None and not ridden
        kept = held_bytes(model) + (0 if again else second.held_bytes(model))
        peak = torch.cuda.max_memory_allocated() - kept
    del prefilled
    runs = {}
    for (method, budget), clock, row in zip(cells, clocks, rows, strict=True):
        seconds = clock.totals()
        for phase, value in shared.items():
            seconds[phase] += value
        run = Run(seconds, row.bytes, sum(ridden), peak)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        steps = Stopwatch(model.device)
        decode(model, [row], DECODE_STEPS + 1, clock=steps)
        start, *later = steps.laps()["decode_token"]
        run.seconds |= {"first_token": start, "decode_token": float(np.median(later))}
        if cuda:  # the row is there twice, kept and in the storage that it is decoded from
            kept = held_bytes(model) + second.held_bytes(model)
            run.peak_decode = torch.cuda.max_memory_allocated() - kept
        runs[_name(method), budget] = run
    return runs


def alike(one: Method | None, other: Method | None) -> bool:
    """Whether two methods do the same up to the scores, and so can share a prefill."""
    if one is None or other is None or not isinstance(one.observers, PromptRows):
        return one is other
    same = replace(other, name=one.name, recipe=replace(other.recipe, schedule=one.recipe.schedule))
    return one == same


def _name(method: Method | None) -> str:
    return FULL if method is None else method.name


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
    timing = _Timing(loaded, study, weights, draft)
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
                        measured = runs[i, _name(method), budget]
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
        rides = [m for m in evicting if isinstance(m.observers, PromptRows) or m.ahead is not None]
        cells += [([method], "layerwise", [budget]) for method in rides for budget in budgets]
    return cells


def batch_row(
    timing: _Timing, facts: dict[str, Any], prompt: Tensor, method: Method | None, budget: int, most: int
) -> dict[str, Any]:
    """The row of phase decode_batch: a step of `most` rows or fewer, all of the same kept cache."""
    facts = facts | {"phase": "decode_batch", "max_batch": most}
    loaded = timing.loaded
    forget(loaded.model)
    try:
        prefilled, scores = prefill_scored(loaded.model, prompt, method)
        [row] = evicted(prefilled, scores, method, budget)
        del prefilled, scores
        batch = 1 << (min(most, MOST_ROWS).bit_length() - 1)
        steps = Stopwatch(loaded.model.device)
        decode(loaded.model, [row] * batch, DECODE_STEPS + 1, clock=steps)
    except torch.OutOfMemoryError:
        return facts | {"status": "out of memory"}
    ms = 1e3 * np.array(steps.laps()["decode_token"][1:])
    low, middle, high = np.percentile(ms, [10, 50, 90])
    found = {"median_ms": middle, "p10_ms": low, "p90_ms": high, "repeats": len(ms), "batch": batch}
    return facts | found | {"tokens_per_s": 1e3 * batch / middle}


def outputs_differ(loaded: Loaded, ids: Tensor, method: Method | None) -> str | None:
    """Why a method's times would mean nothing here: its scores, computed the fast way in the first, a middle
    and the last layer, are not those of the reference. None where they are."""
    if method is None or implementation(loaded.model) != "fused":
        return None
    layers = {0, loaded.layers // 2, loaded.layers - 1}
    try:
        worst = max(score_errors(loaded.model, ids, method, layers))
    except torch.OutOfMemoryError:
        forget(loaded.model)
        return "out of memory"
    return None if worst <= BOUND else f"scores differ from the reference by {worst:.1e}"


@dataclass(frozen=True)
class _Timing:
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
        if method is not None and method.ahead is not None and rides_along(self.loaded.model):
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
            "device": devices.describe(self.loaded.model.device)[0],
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
            theory = overhead_s(method.name, self.shape, length, budget, self.draft)
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
        return int(0.9 * (devices.memory(self.loaded.model.device) - weights) // row)
