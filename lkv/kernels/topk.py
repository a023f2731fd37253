"""The C best of each row, ascending, in one kernel for all layers and KV heads at once.

A search over the bits of the C-th largest score, two at a time (non-negative floats order as their bits do),
with three counts a step; then one pass writes the indices in order. Ties go to the earlier entry, as in
lkv.eviction.select.keep: the same choice on every run, which torch.topk does not promise.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 16384  # entries held in registers: 32 a thread


@triton.jit
def _bits(scores_ptr, at, candidates):
    """Scores as integers of the same order; -1 beyond the candidates."""
    bits = tl.load(scores_ptr + at, mask=at < candidates, other=0.0).to(tl.int32, bitcast=True)
    return tl.where(at < candidates, bits, -1)


@triton.jit
def _counts(bits, low, step):
    """How many are at least low + step, low + 2 · step, low + 3 · step, packed into one number."""
    one = (bits >= low + step).to(tl.int64)
    two = (bits >= low + 2 * step).to(tl.int64)
    three = (bits >= low + 3 * step).to(tl.int64)
    return tl.sum(one + (two << 21) + (three << 42), 0)


@triton.jit
def _keep(
    scores_ptr, count_ptr, kept_ptr, candidates, sinks, window, width, stride, BLOCK: tl.constexpr,
    SINGLE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    wanted = tl.load(count_ptr + row)  # of the candidates
    scores_ptr += row * stride
    kept_ptr += row * width
    at = tl.arange(0, BLOCK)
    if SINGLE:
        bits = _bits(scores_ptr, at, candidates)
    # The largest number that at least `wanted` scores reach: what lies in [low, low + 4 · step) is known.
    low, step = tl.zeros([], tl.int32), 1 << 29
    for _ in range(16):
        if SINGLE:
            counts = _counts(bits, low, step)
        else:
            counts = tl.zeros([], tl.int64)
            for start in range(0, candidates, BLOCK):
                counts += _counts(_bits(scores_ptr, start + at, candidates), low, step)
        part: tl.constexpr = (1 << 21) - 1
        low += step * (
            ((counts & part) >= wanted).to(tl.int32)
            + (((counts >> 21) & part) >= wanted).to(tl.int32)
            + ((counts >> 42) >= wanted).to(tl.int32)
        )
        step = tl.maximum(step >> 2, 1)
    # All above `low` are kept; of those equal to it the earliest, as many as are left.
    above = tl.zeros([], tl.int32)
    for start in range(0, candidates, BLOCK):
        if not SINGLE:
            bits = _bits(scores_ptr, start + at, candidates)
        above += tl.sum((bits > low).to(tl.int32), 0)
    left = wanted - above
    written, ties = sinks, tl.zeros([], tl.int32)
    for start in range(0, candidates, BLOCK):
        if not SINGLE:
            bits = _bits(scores_ptr, start + at, candidates)
        tie = (bits == low).to(tl.int32)
        taken = (tie > 0) & (ties + tl.cumsum(tie, 0) <= left)
        chosen = ((bits > low) | taken).to(tl.int32)
        places = written + tl.cumsum(chosen, 0) - 1
        inside = (chosen > 0) & (places < sinks + wanted)
        tl.store(kept_ptr + places, (start + at + sinks).to(tl.int64), mask=inside)
        written += tl.sum(chosen, 0)
        ties += tl.sum(tie, 0)
    few = tl.arange(0, 256)
    for start in range(0, sinks, 256):
        tl.store(kept_ptr + start + few, (start + few).to(tl.int64), mask=start + few < sinks)
    for start in range(0, window, 256):
        recent = (sinks + candidates + start + few).to(tl.int64)
        tl.store(kept_ptr + sinks + wanted + start + few, recent, mask=start + few < window)


def keep(scores: Tensor, counts: Tensor, sinks: int, window: int, width: int) -> Tensor:
    """scores [X, N'] float32, non-negative; counts int32 [X], of the candidates → int64 [X, width] ascending.

    A row's first sinks + counts[x] + window places hold what it keeps of sinks + N' + window entries, the
    rest zeros. N' below 2 million.
    """
    rows, candidates = scores.shape
    kept = torch.zeros(rows, width, dtype=torch.int64, device=scores.device)
    block = min(BLOCK, max(256, triton.next_power_of_2(candidates)))
    _keep[(rows,)](
        scores, counts, kept, candidates, sinks, window, width, scores.stride(0),
        BLOCK=block, SINGLE=candidates <= block, num_warps=max(4, block // 1024),
    )  # fmt: skip
    return kept
