"""What stands between the matrix products of a transformer block, each in one pass over its data.

lkv.kernels.reference has the same functions in plain torch. These take contiguous tensors without gradient.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lkv.kernels.decode import attend_rows, attend_shared
from lkv.kernels.reference import Norms

__all__ = ["add_norm", "attend_rows", "attend_shared", "rope", "rope_into", "swiglu"]


@triton.jit
def _rms_norm(
    x_ptr, residual_ptr, weight_ptr, out_ptr, width, eps, ADD: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    x = tl.load(x_ptr + row * width + at, mask=inside, other=0.0)
    kind = x.dtype
    if ADD:
        residual = tl.load(residual_ptr + row * width + at, mask=inside, other=0.0)
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(kind)
        tl.store(residual_ptr + row * width + at, x, mask=inside)
    x = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 0) / width + eps)
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * width + at, weight * (x * scale).to(kind).to(tl.float32), mask=inside)


def add_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As lkv.kernels.reference.add_norm; the sum is written over `residual`. Both contiguous."""
    out = torch.empty_like(x)
    width = x.shape[-1]
    block = triton.next_power_of_2(width)
    _rms_norm[(x.numel() // width,)](
        x, residual, weight, out, width, eps,
        ADD=residual is not None, BLOCK=block, num_warps=min(16, max(1, block // 512)),
    )  # fmt: skip
    return out, x if residual is None else residual


@triton.jit
def _swiglu(gate_ptr, up_ptr, numel, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < numel
    gate = tl.load(gate_ptr + at, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    silu = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype).to(tl.float32)
    tl.store(gate_ptr + at, silu * tl.load(up_ptr + at, mask=inside, other=0.0).to(tl.float32), mask=inside)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """As lkv.kernels.reference.swiglu, written over `gate`; both contiguous."""
    _swiglu[(triton.cdiv(gate.numel(), 4096),)](gate, up, gate.numel(), BLOCK=4096, num_warps=8)
    return gate


@triton.jit
def _rotate(
    x_ptr, out_ptr, weight_ptr, cos_ptr, sin_ptr, half, D, eps,
    NORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One head's row: RMS norm over D if asked, then the rotation of its halves."""
    at = tl.arange(0, BLOCK)
    inside = at < half
    low = tl.load(x_ptr + at, mask=inside, other=0.0)
    high = tl.load(x_ptr + half + at, mask=inside, other=0.0)
    kind = low.dtype
    if NORM:
        a, b = low.to(tl.float32), high.to(tl.float32)
        scale = tl.rsqrt((tl.sum(a * a, 0) + tl.sum(b * b, 0)) / D + eps)
        weight_low = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
        weight_high = tl.load(weight_ptr + half + at, mask=inside, other=0.0).to(tl.float32)
        low = (weight_low * (a * scale).to(kind).to(tl.float32)).to(kind)
        high = (weight_high * (b * scale).to(kind).to(tl.float32)).to(kind)
    cos_low = tl.load(cos_ptr + at, mask=inside, other=0.0).to(tl.float32)
    cos_high = tl.load(cos_ptr + half + at, mask=inside, other=0.0).to(tl.float32)
    sin_low = tl.load(sin_ptr + at, mask=inside, other=0.0).to(tl.float32)
    sin_high = tl.load(sin_ptr + half + at, mask=inside, other=0.0).to(tl.float32)
    a, b = low.to(tl.float32), high.to(tl.float32)
    tl.store(out_ptr + at, a * cos_low - b * sin_low, mask=inside)
    tl.store(out_ptr + half + at, b * cos_high + a * sin_high, mask=inside)


@triton.jit
def _rope(
    q_ptr, k_ptr, v_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, k_out_ptr, v_out_ptr, slot_ptr,
    tokens, H, K, D, eps, stride_cb, stride_ct,
    stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    NORM: tl.constexpr, SLOTS: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """HEADS heads of a token: query heads in place, key heads to k_out, with SLOTS values to v_out."""
    batch, token = (tl.program_id(0) // tokens).to(tl.int64), tl.program_id(0) % tokens
    row = tl.program_id(0).to(tl.int64)
    half = D // 2
    cos_ptr += batch * stride_cb + token * stride_ct
    sin_ptr += batch * stride_cb + token * stride_ct
    slot = token.to(tl.int64)
    if SLOTS:
        slot += tl.load(slot_ptr + batch)
    begin = tl.program_id(1) * HEADS
    for head in range(begin, tl.minimum(begin + HEADS, H)):
        q = q_ptr + (row * H + head) * D
        _rotate(q, q, q_weight_ptr, cos_ptr, sin_ptr, half, D, eps, NORM, BLOCK)
    at = tl.arange(0, 2 * BLOCK)
    for head in range(tl.maximum(begin - H, 0), tl.minimum(begin + HEADS - H, K)):
        k = k_ptr + (row * K + head) * D
        out = k_out_ptr + batch * stride_kb + head * stride_kh + slot * stride_kn
        _rotate(k, out, k_weight_ptr, cos_ptr, sin_ptr, half, D, eps, NORM, BLOCK)
        if SLOTS:
            value = tl.load(v_ptr + (row * K + head) * D + at, mask=at < D, other=0.0)
            out = v_out_ptr + batch * stride_vb + head * stride_vh + slot * stride_vn
            tl.store(out + at, value, mask=at < D)


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, norms: Norms = None) -> tuple[Tensor, Tensor]:
    """As reference.rope; q is rotated in place, k goes to a new tensor with each head's keys together."""
    batch, tokens, _, dim = q.shape
    out = k.new_empty(batch, k.shape[2], tokens, dim)
    _launch_rope(q, k, None, cos, sin, norms, out, None, None)
    return q.transpose(1, 2), out


def rope_into(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    norms: Norms,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
) -> Tensor:
    """As lkv.kernels.reference.rope_into, q rotated in place."""
    _launch_rope(q, k, v, cos, sin, norms, keys, values, slots)
    return q.transpose(1, 2)


def _launch_rope(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    norms: Norms,
    keys: Tensor,
    values: Tensor | None,
    slots: Tensor | None,
) -> None:
    batch, tokens, heads, dim = q.shape
    q_weight, k_weight, eps = norms or (None, None, 0.0)
    into = keys if values is None else values
    every = heads + k.shape[2]
    each = every if batch * tokens >= 1024 else 1  # few tokens are spread over the device
    _rope[(batch * tokens, triton.cdiv(every, each))](
        q, k, v, q_weight, k_weight, cos, sin, keys, values, slots,
        tokens, heads, k.shape[2], dim, eps, cos.stride(0) if cos.shape[0] > 1 else 0, cos.stride(1),
        *keys.stride()[:3], *into.stride()[:3],
        NORM=norms is not None, SLOTS=slots is not None, HEADS=each, BLOCK=triton.next_power_of_2(dim // 2),
        num_warps=1,
    )  # fmt: skip
