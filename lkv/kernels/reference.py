"""What stands between the matrix products of a transformer block, in plain torch: differentiable, anywhere.

The reference of lkv.kernels.blocks and lkv.kernels.decode, which have the same functions for CUDA. Rounding
is that of transformers' modules.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Norms: TypeAlias = "tuple[Tensor, Tensor, float] | None"  # weights of q's and k's norm over D, and eps

ROWS = 64  # of a batch attended to at once: sorted by length, they share what is padding


def add_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(weight · y / rms(y), y) of y = x + residual, or of x alone. x [..., hidden]."""
    y = x if residual is None else residual + x
    return _rms_norm(y, weight, eps), y


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up."""
    return F.silu(gate) * up


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, norms: Norms = None) -> tuple[Tensor, Tensor]:
    """Rotary positions, after q/k norms if given: q [B, Q, H, D] → [B, H, Q, D], k [B, Q, K, D] alike.

    cos, sin [1 or B, Q, D].
    """
    if norms is not None:
        q, k = _rms_norm(q, norms[0], norms[2]), _rms_norm(k, norms[1], norms[2])
    cos, sin = cos[:, None], sin[:, None]
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    return q * cos + _turned(q) * sin, k * cos + _turned(k) * sin


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
    """As rope for one token a row (Q = 1), its key and value written into entry slots[r] of [R, K, W, D]."""
    q, k = rope(q, k, cos, sin, norms)
    rows = torch.arange(len(slots), device=slots.device)
    if shared(keys):  # all rows write to the one there is
        keys, values, rows = keys[:1], values[:1], torch.zeros_like(slots)
    keys[rows, :, slots], values[rows, :, slots] = k[:, :, 0], v[:, 0]
    return q


def shared(keys: Tensor) -> bool:
    """Whether rows share one storage [R, K, W, D], expanded to them: then they are tokens of one sequence."""
    return keys.stride(0) == 0


def attend_rows(q: Tensor, keys: Tensor, values: Tensor, slots: Tensor, scaling: float) -> Tensor:
    """One token a row over its own entries: q [R, H, 1, D], keys [R, K, W, D] → [R, 1, H, D].

    Row r sees its entries 0 … slots[r].
    """
    rows, heads, _, dim = q.shape
    grouped = q.reshape(rows, keys.shape[1], -1, dim)
    parts = []
    for start in range(0, rows, ROWS):
        newest = slots[start : start + ROWS]
        longest = int(newest.max()) + 1
        mask = None
        if int(newest.min()) + 1 < longest:
            mask = (torch.arange(longest, device=slots.device) <= newest[:, None])[:, None, None]
        of_rows = slice(start, start + ROWS)
        k, v = keys[of_rows, :, :longest], values[of_rows, :, :longest]
        parts.append(F.scaled_dot_product_attention(grouped[of_rows], k, v, attn_mask=mask, scale=scaling))
    return torch.cat(parts).reshape(rows, 1, heads, dim)


def attend_shared(
    q: Tensor, keys: Tensor, values: Tensor, slots: Tensor, scaling: float
) -> tuple[Tensor, Tensor | None]:
    """As attend_rows where all rows share their entries, and the rows' natural log-sum-exp [1, H, R] float32
    where the kernel gives it."""
    return attend_rows(q, keys, values, slots, scaling), None


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def _turned(x: Tensor) -> Tensor:
    low, high = x.chunk(2, -1)
    return torch.cat([-high, low], -1)
