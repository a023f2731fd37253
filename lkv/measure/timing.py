"""One method's run, timed phase by phase."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lkv.cache.rows import Row
from lkv.data.documents import haystack
from lkv.eviction import second_pass as second
from lkv.eviction.decode import decode
from lkv.eviction.decoder import forget, held_bytes
from lkv.eviction.layerwise import prefill_layerwise
from lkv.eviction.pipeline import evict_to
from lkv.eviction.single_pass import prefill_for, score_errors
from lkv.interface import Method, PromptRows
from lkv.measure.stopwatch import BOUND, Stopwatch, Times, timed
from lkv.model.forward import implementation
from lkv.model.load import Loaded
from lkv.registry import FULL

DECODE_STEPS = 6
NEW_TOKENS = 128  # that a row of the largest batch has room for
WAYS = ("whole", "layerwise")


def filler(tokenizer: PreTrainedTokenizerBase, length: int) -> list[int]:
    """`length` tokens of running text: times do not depend on what a prompt says."""
    ids = tokenizer(haystack("pydoc")[1], add_special_tokens=False).input_ids
    return (ids * (length // len(ids) + 1))[:length]


@dataclass
class Run:
    """One run of one cell: seconds by phase, the cache that is left, the rows that rode along in the prefill,
    CUDA's peaks (nan on the CPU)."""

    seconds: Times
    cache_bytes: int
    ridden: int
    peak_prefill: float = math.nan
    peak_decode: float = math.nan


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
        prefilled, rows = prefill_layerwise(model, ids, first, budget, clock=watch)
    else:
        prefilled = prefill_for(model, ids, first, clock=watch)
        if prefilled.scores is None:  # a tail that is known ahead may yet be read in a second pass
            ridden.clear()
        for (method, budget), clock in zip(cells, clocks, strict=True):
            # A copy each: the model's own answer, once drafted, would cost the next budget nothing.
            rows += evict_to(replace(prefilled), method, budget, clock)
    shared = watch.totals()
    peak = math.nan
    if cuda:  # what is kept between runs is the method's own only where it looked in a second pass
        again = first is not None and first.tail_before_prefill is not None and not ridden
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
        runs[method_label(method), budget] = run
    return runs


def alike(one: Method | None, other: Method | None) -> bool:
    """Whether two methods do the same up to the scores, and so can share a prefill."""
    if one is None or other is None or not isinstance(one.observers, PromptRows):
        return one is other
    same = replace(other, name=one.name, recipe=replace(other.recipe, schedule=one.recipe.schedule))
    return one.made_of == same.made_of


def method_label(method: Method | None) -> str:
    return FULL if method is None else method.name


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
