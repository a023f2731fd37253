"""Linears of a few tokens: bound by reading the weights, which happens once, several linears a launch.

For up to ROWS tokens. cuBLAS reads weights of one linear a launch, the small ones at half of the bandwidth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from lkv.kernels.scores import dot_type

ROWS = 16
SHARES = 16  # of a LoRA's inputs, in parallel


@triton.jit
def _product(
    x_ptr, w_ptr, M, K, rows, o, size, DOT: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr
):
    """[BLOCK_O, ROWS] of w x: outputs o of a weight [O, K], tokens `rows` of x [M, K]."""
    ks = tl.arange(0, BLOCK_K)
    total = tl.zeros([BLOCK_O, rows.shape[0]], tl.float32)
    for start in range(0, K, BLOCK_K):
        at = start + ks
        w = tl.load(
            w_ptr + o[:, None].to(tl.int64) * K + at[None, :],
            mask=(o[:, None] < size) & (at[None, :] < K), other=0.0, eviction_policy="evict_first",
        )  # fmt: skip
        x = tl.load(
            x_ptr + rows[None, :] * K + at[:, None], mask=(rows[None, :] < M) & (at[:, None] < K), other=0.0
        )
        total = tl.dot(w.to(DOT), x.to(DOT), total, input_precision="ieee")
    return total


@triton.jit
def _linears(
    x_ptr, w0_ptr, w1_ptr, w2_ptr, out0_ptr, out1_ptr, out2_ptr, M, K, O0, O1, O2,
    GATED: tl.constexpr, DOT: tl.constexpr, TOKENS: tl.constexpr, BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A block of outputs of one of three linears; GATED: silu(w0 x) · (w1 x) into out0."""
    block, rows = tl.program_id(0), tl.arange(0, TOKENS)
    w_ptr, out_ptr, size = w0_ptr, out0_ptr, O0
    if not GATED:
        first, second = tl.cdiv(O0, BLOCK_O), tl.cdiv(O1, BLOCK_O)
        if block >= first + second:
            w_ptr, out_ptr, size = w2_ptr, out2_ptr, O2
            block -= first + second
        elif block >= first:
            w_ptr, out_ptr, size = w1_ptr, out1_ptr, O1
            block -= first
    o = block * BLOCK_O + tl.arange(0, BLOCK_O)
    total = _product(x_ptr, w_ptr, M, K, rows, o, size, DOT, BLOCK_O, BLOCK_K)
    if GATED:
        up = _product(x_ptr, w1_ptr, M, K, rows, o, size, DOT, BLOCK_O, BLOCK_K)
        kind = out_ptr.dtype.element_ty
        gate = total.to(kind).to(tl.float32)  # rounded where separate linears round
        silu = (gate / (1.0 + tl.exp(-gate))).to(kind).to(tl.float32)
        total = silu * up.to(kind).to(tl.float32)
    mask = (o[:, None] < size) & (rows[None, :] < M)
    tl.store(out_ptr + rows[None, :] * size + o[:, None], total, mask=mask)


def tile(gated: bool) -> dict[str, int]:
    """Outputs a program computes, inputs it reads at a time, its warps, and how many loads run ahead: the
    fastest of those tried on an H100 (docs/performance.md)."""
    if gated:
        return {"BLOCK_O": 64, "BLOCK_K": 128, "num_warps": 4, "num_stages": 4}
    return {"BLOCK_O": 16, "BLOCK_K": 256, "num_warps": 2, "num_stages": 5}


def linears(x: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """x [..., K] of at most ROWS tokens, one to three weights [O_i, K] without bias → [..., O_i] each."""
    outs = [x.new_empty(*x.shape[:-1], weight.shape[0]) for weight in weights]
    _launch(x, weights, outs, gated=False)
    return outs


def gated(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate x) · (up x): x [..., K] of at most ROWS tokens, weights [O, K] → [..., O]."""
    out = x.new_empty(*x.shape[:-1], gate.shape[0])
    _launch(x, (gate, up), (out, out), gated=True)
    return out


def _launch(x: Tensor, weights: Sequence[Tensor], outs: Sequence[Tensor], gated: bool) -> None:
    settings = tile(gated)
    inputs = x.shape[-1]
    sizes = [weight.shape[0] for weight in weights] + [0] * (3 - len(weights))
    filled = [*weights, *[weights[0]] * (3 - len(weights))]
    into = [*outs, *[outs[0]] * (3 - len(outs))]
    blocks = [triton.cdiv(size, settings["BLOCK_O"]) for size in sizes[: 1 if gated else 3]]
    _linears[(sum(blocks),)](
        x, *filled, *into, x.numel() // inputs, inputs, *sizes,
        GATED=gated, DOT=dot_type(x.dtype), TOKENS=ROWS, **settings,
    )  # fmt: skip


@triton.jit
def _down(
    x_ptr, a_ptr, part_ptr, stride_xb, stride_xr, n, K, RANK, share,
    DOT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A share of the inputs: x [B, n, K] by stacked A [RANK, K], into part [shares, B, BLOCK_N, BLOCK_R]."""
    split, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    rows, ranks, ks = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_K)
    low = tl.zeros([BLOCK_N, BLOCK_R], tl.float32)
    end = tl.minimum((split + 1) * share, K)
    for start in range(split * share, end, BLOCK_K):
        at = start + ks
        x = tl.load(
            x_ptr + batch * stride_xb + rows[:, None] * stride_xr + at[None, :],
            mask=(rows[:, None] < n) & (at[None, :] < end), other=0.0,
        )  # fmt: skip
        a = tl.load(
            a_ptr + ranks[None, :] * K + at[:, None],
            mask=(ranks[None, :] < RANK) & (at[:, None] < end), other=0.0,
        )  # fmt: skip
        low = tl.dot(x.to(DOT), a.to(DOT), low, input_precision="ieee")
    part = part_ptr + (split * tl.num_programs(1) + batch) * BLOCK_N * BLOCK_R
    tl.store(part + rows[:, None] * BLOCK_R + ranks[None, :], low)


@triton.jit
def _up(
    part_ptr, b0_ptr, b1_ptr, b2_ptr, out0_ptr, out1_ptr, out2_ptr, scale, n, O0, O1, O2, rank,
    stride_b0, stride_r0, stride_b1, stride_r1, stride_b2, stride_r2,
    DOT: tl.constexpr, SHARES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_ALL: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """out_i [B, n, O_i] += scale · (summed part)[.., i · rank : (i + 1) · rank] B_iᵀ, B_i [O_i, rank]."""
    block, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    b_ptr, out_ptr, size, stride_b, stride_r, which = b0_ptr, out0_ptr, O0, stride_b0, stride_r0, 0
    first, second = tl.cdiv(O0, BLOCK_O), tl.cdiv(O1, BLOCK_O)
    if block >= first + second:
        b_ptr, out_ptr, size, stride_b, stride_r, which = b2_ptr, out2_ptr, O2, stride_b2, stride_r2, 2
        block -= first + second
    elif block >= first:
        b_ptr, out_ptr, size, stride_b, stride_r, which = b1_ptr, out1_ptr, O1, stride_b1, stride_r1, 1
        block -= first
    rows, ranks, o = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_R), block * BLOCK_O + tl.arange(0, BLOCK_O)
    # All shares are asked for at once: one wait for memory, not one a share.
    cell, share = tl.arange(0, BLOCK_N * BLOCK_R), tl.arange(0, SHARES)
    row, column = cell // BLOCK_R, cell % BLOCK_R
    place = (share[:, None] * tl.num_programs(1) + batch) * BLOCK_N * BLOCK_ALL
    place += row[None, :] * BLOCK_ALL + which * rank + column[None, :]
    low = tl.sum(tl.load(part_ptr + place, mask=column[None, :] < rank, other=0.0), 0)
    low = tl.reshape(low, [BLOCK_N, BLOCK_R])
    b = tl.load(
        b_ptr + o[None, :].to(tl.int64) * rank + ranks[:, None],
        mask=(o[None, :] < size) & (ranks[:, None] < rank), other=0.0,
    )  # fmt: skip
    delta = tl.dot(low.to(DOT), b.to(DOT), input_precision="ieee") * scale
    mask = (rows[:, None] < n) & (o[None, :] < size)
    at = out_ptr + batch * stride_b + rows[:, None] * stride_r + o[None, :]
    tl.store(at, tl.load(at, mask=mask, other=0.0).to(tl.float32) + delta, mask=mask)


def add_lora(x: Tensor, a: Tensor, bs: Sequence[Tensor], outs: Sequence[Tensor], scale: float) -> None:
    """outs[i] += scale · x a_iᵀ bs[i]ᵀ in place, for one to three linears that share their inputs.

    x [B, n, K], a [len(bs) · r, K] with the a_i below each other, bs[i] [O_i, r], outs[i] [B, n, O_i]; x and
    outs may be views of more rows.
    """
    batch, n, inputs = x.shape
    rank = bs[0].shape[1]
    rows, every = max(16, triton.next_power_of_2(n)), max(16, triton.next_power_of_2(a.shape[0]))
    share = triton.cdiv(inputs, SHARES)
    part = torch.empty(SHARES, batch, rows, every, device=x.device)
    kind = dot_type(x.dtype)
    _down[(SHARES, batch)](
        x, a, part, *x.stride()[:2], n, inputs, a.shape[0], share,
        DOT=kind, BLOCK_N=rows, BLOCK_R=every, BLOCK_K=min(256, max(16, triton.next_power_of_2(share))),
        num_warps=4,
    )  # fmt: skip
    sizes = [out.shape[-1] for out in outs] + [0] * (3 - len(outs))
    filled = [*bs, *[bs[0]] * (3 - len(bs))]
    into = [*outs, *[outs[0]] * (3 - len(outs))]
    strides = [stride for out in into for stride in out.stride()[:2]]
    _up[(sum(triton.cdiv(size, 128) for size in sizes), batch)](
        part, *filled, *into, scale, n, *sizes, rank, *strides,
        DOT=kind, SHARES=SHARES, BLOCK_N=rows, BLOCK_ALL=every,
        BLOCK_R=max(16, triton.next_power_of_2(rank)), BLOCK_O=128, num_warps=4,
    )  # fmt: skip
