"""Floating-point operations of a prefill, of extra tokens, of a training step."""

from __future__ import annotations

from lkv.model.shape import Shape


def prefill_flop(shape: Shape, length: float) -> float:
    """Of the blocks: linears, and causal attention at half of its square."""
    return 2 * shape.block_parameters * length + 2 * length**2 * shape.width * shape.layers


def rows_flop(shape: Shape, rows: int, length: int) -> float:
    return 2 * shape.block_parameters * rows + 4 * rows * length * shape.width * shape.layers


def row_share(shape: Shape, rows: int, length: int) -> float:
    """Operations of rows appended to a prompt, as a share of the prompt's own."""
    return rows_flop(shape, rows, length) / prefill_flop(shape, length)


def training_flop(shape: Shape, length: int, answer: int, n: int) -> float:
    """Operations of one prompt's training step: its prefill, the answer's pass for the target, and the n
    lookahead rows' pass, whose backward costs twice its forward."""
    return prefill_flop(shape, length) + rows_flop(shape, answer + 3 * n, length)
