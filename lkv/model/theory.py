"""What a method's steps should add to a plain prefill on one H100, by the paper's model of a device.

After Davies et al., as the paper (appendix, p. 24) uses it: a step takes as long as its floating-point
operations at 0.7 of the peak rate, or its memory traffic at 0.9 of the bandwidth, whichever is longer. H100
SXM, bfloat16.
"""

from __future__ import annotations

from lkv.model.flops import prefill_flop, rows_flop
from lkv.model.shape import NUMBER, Shape

PEAK_FLOPS, PEAK_BYTES_S = 989e12, 3.35e12
FLOP_EFFICIENCY, MEMORY_EFFICIENCY = 0.7, 0.9


def seconds(flop: float, moved: float) -> float:
    """The longer of the time to compute and the time to move bytes."""
    return max(flop / (FLOP_EFFICIENCY * PEAK_FLOPS), moved / (MEMORY_EFFICIENCY * PEAK_BYTES_S))


def prefill_s(shape: Shape, length: int) -> float:
    """A whole prompt."""
    return seconds(prefill_flop(shape, length), NUMBER * shape.parameters)


def rows_s(shape: Shape, rows: int, length: int) -> float:
    """More rows in a prefill that reads the weights anyway: they cost their operations alone."""
    return seconds(rows_flop(shape, rows, length), 0)


def scores_s(shape: Shape, rows: int, length: int) -> float:
    """rows × keys products over all layers, each key read once."""
    return seconds(2 * rows * length * shape.width * shape.layers, shape.entry_bytes / 2 * length)


def compact_s(shape: Shape, budget: int) -> float:
    """Kept entries read and written."""
    return seconds(0, 2 * shape.entry_bytes * budget)


def decode_s(shape: Shape, stored: int) -> float:
    """One token of one sequence: weights and cache are read once."""
    flop = 2 * shape.parameters + 4 * stored * shape.width * shape.layers
    return seconds(flop, NUMBER * shape.parameters + shape.entry_bytes * stored)
