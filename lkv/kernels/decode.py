"""Attention of one token a row over caches of unequal length, split over the keys where rows are few.

Each row reads its own entries and no padding; the query heads of a KV head share one reading of its keys,
and so do rows that share one cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lkv.kernels.scores import LOG2E, dot_type

PROGRAMS = 264  # two a multiprocessor of an H100: fewer leave memory bandwidth unused


@triton.jit
def _attended(
    q, k_ptr, v_ptr, begin, end, newest, scale, D, stride_kn, stride_vn,
    LATER: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Queries [M, D] over the keys begin … end of one head: output so far, maximum, sum of exponentials.
    LATER: some of the keys lie behind the newest [M] that a query sees."""
    dims, n = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    top = tl.full([q.shape[0]], float("-inf"), tl.float32)
    total = tl.zeros([q.shape[0]], tl.float32)
    out = tl.zeros([q.shape[0], BLOCK_D], tl.float32)
    for start in range(begin, end, BLOCK_N):
        at = (start + n).to(tl.int64)
        inside = (at < end)[:, None] & (dims[None, :] < D)
        k = tl.load(k_ptr + at[:, None] * stride_kn + dims[None, :], mask=inside, other=0.0).to(DOT)
        v = tl.load(v_ptr + at[:, None] * stride_vn + dims[None, :], mask=inside, other=0.0).to(DOT)
        logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        seen = (at < end)[None, :]
        if LATER:
            seen = seen & (at[None, :] <= newest[:, None])
        logits = tl.where(seen, logits, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        base = higher
        if LATER:
            base = tl.where(higher == float("-inf"), 0.0, higher)  # a row that has seen nothing yet
        weights = tl.exp2(logits - base[:, None])
        fade = tl.exp2(top - base)
        total = total * fade + tl.sum(weights, 1)
        out = out * fade[:, None] + tl.dot(weights.to(DOT), v, input_precision="ieee")
        top = higher
    return out, top, total


@triton.jit
def _partial(
    q_ptr, k_ptr, v_ptr, slot_ptr, out_ptr, top_ptr, sum_ptr, scale, G, D, K,
    stride_qb, stride_qh, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_ob, stride_oh,
    SPLITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """One split of a row's keys: output so far [.., G, D], its maximum and sum of exponentials."""
    row, kv, split = (tl.program_id(0) // K).to(tl.int64), tl.program_id(0) % K, tl.program_id(1)
    length = (tl.load(slot_ptr + row) + 1).to(tl.int32)
    span = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK_N) * BLOCK_N
    begin, end = split * span, tl.minimum(split * span + span, length)
    g, dims = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D)
    heads = kv * G + g
    wide = (g[:, None] < G) & (dims[None, :] < D)
    q = tl.load(q_ptr + row * stride_qb + heads[:, None] * stride_qh + dims[None, :], mask=wide, other=0.0)
    q = q.to(DOT)
    k_ptr += row * stride_kb + kv.to(tl.int64) * stride_kh
    v_ptr += row * stride_vb + kv.to(tl.int64) * stride_vh
    out, top, total = _attended(
        q, k_ptr, v_ptr, begin, end, length, scale, D, stride_kn, stride_vn,
        LATER=False, BLOCK_N=BLOCK_N, BLOCK_D=BLOCK_D, DOT=DOT,
    )  # fmt: skip
    if SPLITS == 1:
        place = row * stride_ob + heads[:, None] * stride_oh + dims[None, :]
        tl.store(out_ptr + place, out / total[:, None], mask=wide)
    else:
        part = ((row * K + kv) * SPLITS + split) * G + g
        tl.store(out_ptr + part[:, None] * D + dims[None, :], out, mask=wide)
        tl.store(top_ptr + part, top, mask=g < G)
        tl.store(sum_ptr + part, total, mask=g < G)


@triton.jit
def _shared(
    q_ptr, k_ptr, v_ptr, slot_ptr, out_ptr, top_ptr, sum_ptr, scale, R, G, D, K,
    stride_qb, stride_qh, stride_kh, stride_kn, stride_vh, stride_vn,
    SPLITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """As _partial for BLOCK_M pairs of row and query head of one KV head, whose keys all rows share."""
    chunk, kv, split = tl.program_id(0) // K, tl.program_id(0) % K, tl.program_id(1)
    every = tl.arange(0, BLOCK_R)
    length = (tl.max(tl.load(slot_ptr + every, mask=every < R, other=0), 0) + 1).to(tl.int32)
    span = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK_N) * BLOCK_N
    begin, end = split * span, tl.minimum(split * span + span, length)
    pair, dims = chunk * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    row, g = pair // G, pair % G
    newest = tl.load(slot_ptr + row, mask=row < R, other=0).to(tl.int32)
    wide = (row[:, None] < R) & (dims[None, :] < D)
    place = row.to(tl.int64) * stride_qb + (kv * G + g) * stride_qh
    q = tl.load(q_ptr + place[:, None] + dims[None, :], mask=wide, other=0.0).to(DOT)
    k_ptr += kv.to(tl.int64) * stride_kh
    v_ptr += kv.to(tl.int64) * stride_vh
    out, top, total = _attended(
        q, k_ptr, v_ptr, begin, end, newest, scale, D, stride_kn, stride_vn,
        LATER=True, BLOCK_N=BLOCK_N, BLOCK_D=BLOCK_D, DOT=DOT,
    )  # fmt: skip
    part = ((row.to(tl.int64) * K + kv) * SPLITS + split) * G + g
    tl.store(out_ptr + part[:, None] * D + dims[None, :], out, mask=wide)
    tl.store(top_ptr + part, top, mask=row < R)
    tl.store(sum_ptr + part, total, mask=row < R)


@triton.jit
def _combine(
    part_ptr, top_ptr, sum_ptr, out_ptr, lse_ptr, G, D, K, stride_ob, stride_oh, stride_lb, stride_lh,
    LSE: tl.constexpr, SPLITS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The splits of one query head put together; LSE: their natural log-sum-exp as well."""
    head = tl.program_id(0).to(tl.int64)  # row · H + query head
    kv, g = head // G, head % G
    splits, dims = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    part = (kv * SPLITS + splits) * G + g
    top = tl.load(top_ptr + part, mask=splits < SPLITS, other=float("-inf"))
    highest = tl.max(top, 0)
    weight = tl.exp2(top - highest)
    total = tl.sum(weight * tl.load(sum_ptr + part, mask=splits < SPLITS, other=0.0), 0)
    inside = (splits < SPLITS)[:, None] & (dims[None, :] < D)
    parts = tl.load(part_ptr + part[:, None] * D + dims[None, :], mask=inside, other=0.0)
    out = tl.sum(parts * weight[:, None], 0) / total
    row, of_row = head // (K * G), head % (K * G)
    tl.store(out_ptr + row * stride_ob + of_row * stride_oh + dims, out, mask=dims < D)
    if LSE:
        lse = (highest + tl.log2(total)) * 0.6931471805599453  # log 2: from base 2 to base e
        tl.store(lse_ptr + row * stride_lb + of_row * stride_lh, lse)


def attend_rows(q: Tensor, keys: Tensor, values: Tensor, slots: Tensor, scaling: float) -> Tensor:
    """As lkv.kernels.reference.attend_rows: q [R, H, 1, D], keys and values [R, K, W, D] → [R, 1, H, D]."""
    rows, heads, _, dim = q.shape
    kv_heads, room = keys.shape[1], keys.shape[2]
    groups = heads // kv_heads
    block_n = 64 if dim <= 128 else 32
    splits = min(triton.cdiv(PROGRAMS, rows * kv_heads), triton.cdiv(room, 2 * block_n), 64)
    out = q.new_empty(rows, 1, heads, dim)
    part, top, total = out, out, out
    if splits > 1:
        part, top, total = _parts(q, kv_heads, splits)
    _partial[(rows * kv_heads, splits)](
        q, keys, values, slots, part, top, total, scaling * LOG2E, groups, dim, kv_heads,
        *q.stride()[:2], *keys.stride()[:3], *values.stride()[:3],
        out.stride(0), out.stride(2),
        SPLITS=splits, BLOCK_N=block_n, BLOCK_G=max(16, triton.next_power_of_2(groups)),
        BLOCK_D=_block_d(dim), DOT=dot_type(q.dtype), num_warps=4,
    )  # fmt: skip
    if splits > 1:
        _put_together(part, top, total, out)
    return out


def attend_shared(
    q: Tensor, keys: Tensor, values: Tensor, slots: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """As lkv.kernels.reference.attend_shared; the log-sum-exp is always there."""
    rows, heads, _, dim = q.shape
    kv_heads, room = keys.shape[1], keys.shape[2]
    groups = heads // kv_heads
    block_n = 64 if dim <= 128 else 32
    block_m = 16 if q.dtype == torch.float32 else 64  # without tensor cores more does not fit into registers
    programs = triton.cdiv(rows * groups, block_m) * kv_heads
    splits = max(1, min(triton.cdiv(PROGRAMS, programs), triton.cdiv(room, 2 * block_n), 64))
    out, lse = q.new_empty(rows, 1, heads, dim), torch.empty(1, heads, rows, device=q.device)
    part, top, total = _parts(q, kv_heads, splits)
    _shared[(programs, splits)](
        q, keys, values, slots, part, top, total, scaling * LOG2E, rows, groups, dim, kv_heads,
        *q.stride()[:2], *keys.stride()[1:3], *values.stride()[1:3],
        SPLITS=splits, BLOCK_N=block_n, BLOCK_M=block_m, BLOCK_R=triton.next_power_of_2(rows),
        BLOCK_D=_block_d(dim), DOT=dot_type(q.dtype), num_warps=4, num_stages=2,
    )  # fmt: skip
    _put_together(part, top, total, out, lse)
    return out, lse


def _block_d(dim: int) -> int:
    return max(16, triton.next_power_of_2(dim))


def _parts(q: Tensor, kv_heads: int, splits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Room for each split's output [R, K, S, G, D], maximum and sum [R, K, S, G] of queries [R, H, 1, D]."""
    rows, heads, _, dim = q.shape
    top = q.new_empty(rows, kv_heads, splits, heads // kv_heads, dtype=torch.float32)
    return q.new_empty(*top.shape, dim, dtype=torch.float32), top, torch.empty_like(top)


def _put_together(part: Tensor, top: Tensor, total: Tensor, out: Tensor, lse: Tensor | None = None) -> None:
    """What `_parts` holds into out [R, 1, H, D] and, if it is there, lse [1, H, R]."""
    (rows, kv_heads, splits, groups, dim), known = part.shape, out if lse is None else lse
    _combine[(rows * kv_heads * groups,)](
        part, top, total, out, known, groups, dim, kv_heads, out.stride(0), out.stride(2),
        known.stride(2), known.stride(1),
        LSE=lse is not None, SPLITS=splits, BLOCK_S=triton.next_power_of_2(splits), BLOCK_D=_block_d(dim),
        num_warps=4,
    )  # fmt: skip
