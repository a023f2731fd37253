"""Importance of prompt keys to a few observers, fused: nothing of size heads × observers × keys is stored.

Each key is read once for all observers of all query heads of its KV head. Where the forward pass already
knows each row's log-sum-exp (attention kernels return it), one pass over the keys is all: `_mean` computes
the logits and reduces the probabilities over the observers. Otherwise `_stats` leaves each share's row maxima
and sums in a pass before, and `_lse` puts them together.

lkv.eviction.importance.reference is the reference, in every argument; tests compare both with float64.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

LOG2E = 1.4426950408889634
ROWS = 128  # of observers, all heads of a group counted in, that a program works on at a time
PROGRAMS = 528  # four a multiprocessor of an H100: each loops over its share of the keys, loads running ahead
INTERPRETED = knobs.runtime.interpret


def dot_type(dtype: torch.dtype) -> tl.dtype:
    """What matrix products take: the inputs as they are, but in the interpreter, which has no bfloat16."""
    known = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
    return tl.float32 if INTERPRETED else known[dtype]


@triton.jit
def _observers(
    q_ptr, chunk, R, G, D, stride_qh, stride_qr, DOT: tl.constexpr, PER_HEAD: tl.constexpr,
    HEADS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """[BLOCK_D, HEADS · PER_HEAD]: rows chunk · PER_HEAD … of each query head of the group, head by head."""
    column = tl.arange(0, HEADS * PER_HEAD)
    g, row = column // PER_HEAD, chunk * PER_HEAD + column % PER_HEAD
    dims = tl.arange(0, BLOCK_D)
    q = tl.load(
        q_ptr + g[None, :] * stride_qh + row[None, :] * stride_qr + dims[:, None],
        mask=(g[None, :] < G) & (row[None, :] < R) & (dims[:, None] < D),
        other=0.0,
    )
    return q.to(DOT)


@triton.jit
def _stats(
    q_ptr, k_ptr, top_ptr, sum_ptr, first_ptr, scale, R, G, D, H, K, stored, blocks,
    stride_qb, stride_qh, stride_qr, stride_kb, stride_kh, stride_kn,
    CAUSAL: tl.constexpr, BLOCK_N: tl.constexpr, PER_HEAD: tl.constexpr, HEADS: tl.constexpr,
    CHUNKS: tl.constexpr, BLOCK_D: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Each row's maximum and sum of exponentials over each program's keys: top, sum [programs, B · H, R]."""
    batch, kv = (tl.program_id(1) // K).to(tl.int64), tl.program_id(1) % K
    column = tl.arange(0, HEADS * PER_HEAD)
    g, dims, n = column // PER_HEAD, tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    q_ptr += batch * stride_qb + (kv * G).to(tl.int64) * stride_qh
    k_ptr += batch * stride_kb + kv.to(tl.int64) * stride_kh
    first = tl.load(first_ptr + batch) if CAUSAL else 0
    share = tl.cdiv(blocks, tl.num_programs(0))
    begin = tl.program_id(0) * share
    out = (tl.program_id(0).to(tl.int64) * (tl.num_programs(1) // K) + batch) * H + kv * G
    for chunk in range(CHUNKS):
        row = chunk * PER_HEAD + column % PER_HEAD
        q = _observers(q_ptr, chunk, R, G, D, stride_qh, stride_qr, DOT, PER_HEAD, HEADS, BLOCK_D)
        top = tl.full([HEADS * PER_HEAD], float("-inf"), tl.float32)
        total = tl.zeros([HEADS * PER_HEAD], tl.float32)
        for block in range(begin, tl.minimum(begin + share, blocks)):
            at = block * BLOCK_N + n
            k = tl.load(
                k_ptr + at[:, None].to(tl.int64) * stride_kn + dims[None, :],
                mask=(at[:, None] < stored) & (dims[None, :] < D),
                other=0.0,
            ).to(DOT)
            logits = tl.dot(k, q, input_precision="ieee") * scale
            seen = at[:, None] < stored
            if CAUSAL:
                seen = seen & (at[:, None] <= first + row[None, :])
            logits = tl.where(seen, logits, float("-inf"))
            higher = tl.maximum(top, tl.max(logits, 0))
            base = tl.where(higher == float("-inf"), 0.0, higher)
            total = total * tl.exp2(top - base) + tl.sum(tl.exp2(logits - base[None, :]), 0)
            top = higher
        place = (out + g) * R + row
        tl.store(top_ptr + place, top, mask=(g < G) & (row < R))
        tl.store(sum_ptr + place, total, mask=(g < G) & (row < R))


@triton.jit
def _lse(top_ptr, sum_ptr, lse_ptr, parts, rows_all, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    """Base-2 log-sum-exp of each row from its parts': top, sum [parts, rows_all] → lse [rows_all]."""
    rows, at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, PARTS)
    place = at[:, None].to(tl.int64) * rows_all + rows[None, :]
    mask = (at[:, None] < parts) & (rows[None, :] < rows_all)
    tops = tl.load(top_ptr + place, mask=mask, other=float("-inf"))
    sums = tl.load(sum_ptr + place, mask=mask, other=0.0)
    top = tl.max(tops, 0)
    base = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(sums * tl.exp2(tops - base[None, :]), 0)
    tl.store(lse_ptr + rows, base + tl.log2(tl.where(total > 0, total, 1.0)), mask=rows < rows_all)


@triton.jit
def _mean(
    q_ptr, k_ptr, lse_ptr, valid_ptr, out_ptr, first_ptr, scale, R, G, D, H, K, low, high, lse_scale, blocks,
    stride_qb, stride_qh, stride_qr, stride_kb, stride_kh, stride_kn,
    stride_lb, stride_lh, stride_ob, stride_oh,
    CAUSAL: tl.constexpr, VALID: tl.constexpr, OVER_MAX: tl.constexpr, GROUP: tl.constexpr,
    POOL: tl.constexpr, HALO: tl.constexpr, BLOCK_N: tl.constexpr, PER_HEAD: tl.constexpr,
    HEADS: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """Probabilities of keys low … high - 1, reduced over the observers, then group and pool if asked.

    A block computes BLOCK_N keys and stores the inner BLOCK_N - 2 · HALO: pooling needs the neighbours.
    GROUP: 0 none (a score a query head), 1 mean, 2 max. POOL: 0 none, 1 max, 2 avg, after the group.
    """
    inner: tl.constexpr = BLOCK_N - 2 * HALO
    batch, kv = (tl.program_id(1) // K).to(tl.int64), tl.program_id(1) % K
    column, place = tl.arange(0, HEADS * PER_HEAD), tl.arange(0, BLOCK_N)
    g, head, dims = column // PER_HEAD, tl.arange(0, HEADS), tl.arange(0, BLOCK_D)
    q_ptr += batch * stride_qb + (kv * G).to(tl.int64) * stride_qh
    k_ptr += batch * stride_kb + kv.to(tl.int64) * stride_kh
    lse_ptr += batch * stride_lb + kv * G * stride_lh
    count = 1.0 * R
    if VALID:
        every = tl.arange(0, BLOCK_R)
        count = tl.sum(tl.load(valid_ptr + batch * R + every, mask=every < R, other=0).to(tl.float32), 0)
        count = tl.maximum(count, 1.0)
    first = tl.load(first_ptr + batch) if CAUSAL else 0
    share = tl.cdiv(blocks, tl.num_programs(0))
    begin = tl.program_id(0) * share
    if CHUNKS == 1:  # all observers stay at hand while the keys go by
        q = _observers(q_ptr, 0, R, G, D, stride_qh, stride_qr, DOT, PER_HEAD, HEADS, BLOCK_D)
    for block in range(begin, tl.minimum(begin + share, blocks)):
        at = low + block * inner - HALO + place
        inside = (at >= low) & (at < high)
        k = tl.load(
            k_ptr + at[:, None].to(tl.int64) * stride_kn + dims[None, :],
            mask=inside[:, None] & (dims[None, :] < D),
            other=0.0,
        ).to(DOT)
        scores = tl.zeros([BLOCK_N, HEADS], tl.float32)
        start = 0
        if CAUSAL and CHUNKS > 1:  # rows before the block's first key see nothing of it
            start = tl.maximum(low + block * inner - HALO - first, 0) // PER_HEAD
        for chunk in range(start, CHUNKS):
            row = chunk * PER_HEAD + column % PER_HEAD
            if CHUNKS > 1:
                q = _observers(q_ptr, chunk, R, G, D, stride_qh, stride_qr, DOT, PER_HEAD, HEADS, BLOCK_D)
            real = (g < G) & (row < R)
            lse = tl.load(lse_ptr + g * stride_lh + row, mask=real, other=0.0) * lse_scale
            logits = tl.dot(k, q, input_precision="ieee") * scale - lse[None, :]
            if VALID:
                real = real & (tl.load(valid_ptr + batch * R + row, mask=real, other=0) != 0)
            seen = real[None, :]
            if CAUSAL:
                seen = seen & (at[:, None] <= first + row[None, :])
            part = tl.reshape(tl.where(seen, tl.exp2(logits), 0.0), [BLOCK_N, HEADS, PER_HEAD])
            if OVER_MAX:
                scores = tl.maximum(scores, tl.max(part, 2))
            else:
                scores += tl.sum(part, 2)
        if not OVER_MAX:
            scores = scores / count
        if GROUP == 0:
            out = out_ptr + batch * stride_ob + (kv * G + head[None, :]).to(tl.int64) * stride_oh
            tl.store(out + (at[:, None] - low), scores, mask=inside[:, None] & (head[None, :] < G))
        else:
            grouped = tl.sum(scores, 1) / G if GROUP == 1 else tl.max(scores, 1)
            if POOL == 1:
                grouped = tl.where(inside, grouped, float("-inf"))
            if POOL == 2:
                grouped = tl.where(inside, grouped, 0.0)
            pooled = grouped
            for offset in tl.static_range(1, HALO + 1):
                left = tl.gather(grouped, tl.maximum(place - offset, 0), 0)
                right = tl.gather(grouped, tl.minimum(place + offset, BLOCK_N - 1), 0)
                if POOL == 1:
                    pooled = tl.maximum(pooled, tl.maximum(left, right))
                else:
                    pooled += left + right
            if POOL == 2:
                pooled = pooled / (2 * HALO + 1)
            out = out_ptr + batch * stride_ob + kv.to(tl.int64) * stride_oh + (at - low)
            tl.store(out, pooled, mask=inside & (place >= HALO) & (place < BLOCK_N - HALO))


@triton.jit
def _gradient(
    q_ptr, k_ptr, lse_ptr, valid_ptr, grad_ptr, first_part_ptr, second_part_ptr, c_ptr, first_ptr, scale,
    R, G, D, H, K, prompt, stored, blocks,
    stride_qb, stride_qh, stride_qr, stride_kb, stride_kh, stride_kn, stride_gb, stride_gh,
    CAUSAL: tl.constexpr, VALID: tl.constexpr, BLOCK_N: tl.constexpr, PER_HEAD: tl.constexpr,
    HEADS: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """Each row's sums over a share of the keys, for the gradient of the mean: Σ P g K, Σ P K, Σ P g, with P
    the row's probabilities and g what comes back to a key's score, over the number of rows."""
    batch, kv = (tl.program_id(1) // K).to(tl.int64), tl.program_id(1) % K
    column, n = tl.arange(0, HEADS * PER_HEAD), tl.arange(0, BLOCK_N)
    g, head, dims = column // PER_HEAD, tl.arange(0, HEADS), tl.arange(0, BLOCK_D)
    q_ptr += batch * stride_qb + (kv * G).to(tl.int64) * stride_qh
    k_ptr += batch * stride_kb + kv.to(tl.int64) * stride_kh
    grad_ptr += batch * stride_gb + kv * G * stride_gh
    count = 1.0 * R
    if VALID:
        every = tl.arange(0, BLOCK_R)
        count = tl.sum(tl.load(valid_ptr + batch * R + every, mask=every < R, other=0).to(tl.float32), 0)
        count = tl.maximum(count, 1.0)
    first = tl.load(first_ptr + batch) if CAUSAL else 0
    share = tl.cdiv(blocks, tl.num_programs(0))
    begin = tl.program_id(0) * share
    for chunk in range(CHUNKS):
        row = chunk * PER_HEAD + column % PER_HEAD
        real = (g < G) & (row < R)
        q = _observers(q_ptr, chunk, R, G, D, stride_qh, stride_qr, DOT, PER_HEAD, HEADS, BLOCK_D)
        lse = tl.load(lse_ptr + (batch * H + kv * G + g) * R + row, mask=real, other=0.0)
        counted = real
        if VALID:
            counted = counted & (tl.load(valid_ptr + batch * R + row, mask=real, other=0) != 0)
        weighted = tl.zeros([HEADS * PER_HEAD, BLOCK_D], tl.float32)
        plain = tl.zeros([HEADS * PER_HEAD, BLOCK_D], tl.float32)
        c = tl.zeros([HEADS * PER_HEAD], tl.float32)
        for block in range(begin, tl.minimum(begin + share, blocks)):
            at = block * BLOCK_N + n
            k = tl.load(
                k_ptr + at[:, None].to(tl.int64) * stride_kn + dims[None, :],
                mask=(at[:, None] < stored) & (dims[None, :] < D),
                other=0.0,
            ).to(DOT)
            back = tl.load(
                grad_ptr + head[None, :] * stride_gh + at[:, None],
                mask=(head[None, :] < G) & (at[:, None] < prompt),
                other=0.0,
            )
            seen = counted[None, :] & (at[:, None] < stored)
            if CAUSAL:
                seen = seen & (at[:, None] <= first + row[None, :])
            logits = tl.dot(k, q, input_precision="ieee") * scale - lse[None, :]
            p = tl.where(seen, tl.exp2(logits), 0.0)
            wide = tl.reshape(p, [BLOCK_N, HEADS, PER_HEAD]) * back[:, :, None]
            pg = tl.reshape(wide, [BLOCK_N, HEADS * PER_HEAD]) / count
            c += tl.sum(pg, 0)
            weighted = tl.dot(tl.trans(pg).to(DOT), k, weighted, input_precision="ieee")
            plain = tl.dot(tl.trans(p).to(DOT), k, plain, input_precision="ieee")
        part = (tl.program_id(0).to(tl.int64) * (tl.num_programs(1) // K) + batch) * H + kv * G + g
        place = part * R + row
        tl.store(c_ptr + place, c, mask=real)
        wide_mask = real[:, None] & (dims[None, :] < D)
        tl.store(first_part_ptr + place[:, None] * D + dims[None, :], weighted, mask=wide_mask)
        tl.store(second_part_ptr + place[:, None] * D + dims[None, :], plain, mask=wide_mask)


class MeanImportance(torch.autograd.Function):
    """importance(over mean) that gradients flow through: to the queries, and to the keys after the prompt's,
    which are the observers' own. The prompt's keys get none: they depend on nothing that is trained."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        scaling: float,
        prompt: int,
        first: int,
        valid: Tensor | None,
    ) -> Tensor:
        sees = (queries, keys, scaling, 0, prompt, first, "mean", valid, None)
        seen, lse = _run(*sees, 0, 0, 1, with_lse=True)
        ctx.save_for_backward(queries, keys, lse, valid)
        ctx.given = scaling, prompt, first
        return seen

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, lse, valid = ctx.saved_tensors
        scaling, prompt, first = ctx.given
        c, d_queries = _d_queries(queries, keys, lse, valid, grads[0].contiguous(), scaling, prompt, first)
        # Of the keys the observers' own alone: a few rows and columns, in plain torch.
        heads, rows = queries.shape[1:3]
        own = keys[:, :, prompt:].repeat_interleave(heads // keys.shape[1], 1)
        logits = (queries.float() @ own.float().transpose(-1, -2)) * (scaling * LOG2E) - lse[..., None]
        place = torch.arange(own.shape[2], device=keys.device) + prompt
        seen = place <= first + torch.arange(rows, device=keys.device)[:, None]
        if valid is not None:
            seen = seen & valid[:, None, :, None]
        d_logits = torch.where(seen, logits.exp2(), 0.0) * -c[..., None] * scaling
        d_own = (d_logits.transpose(-1, -2) @ queries.float()).unflatten(1, (keys.shape[1], -1)).sum(2)
        d_keys = torch.zeros_like(keys)
        d_keys[:, :, prompt:] = d_own
        return d_queries, d_keys, None, None, None, None


def _d_queries(
    queries: Tensor,
    keys: Tensor,
    lse: Tensor,
    valid: Tensor | None,
    grad: Tensor,
    scaling: float,
    prompt: int,
    first: int,
) -> tuple[Tensor, Tensor]:
    """(each row's Σ P g [B, H, R], the queries' gradient)."""
    batch, heads, rows, dim = queries.shape
    kv_heads, stored = keys.shape[1], keys.shape[2]
    settings = _settings(rows, heads // kv_heads, dim, queries.dtype) | {
        "BLOCK_N": 32 if dim > 64 else 64, "num_warps": 8, "num_stages": 2
    }  # fmt: skip
    pairs, blocks = batch * kv_heads, triton.cdiv(stored, settings["BLOCK_N"])
    parts = min(blocks, triton.cdiv(PROGRAMS // 2, pairs))
    weighted = torch.empty(parts, batch, heads, rows, dim, device=queries.device)
    plain = torch.empty_like(weighted)
    c = torch.empty(parts, batch, heads, rows, device=queries.device)
    starts = torch.full((batch,), first, dtype=torch.int32, device=queries.device)
    _gradient[(parts, pairs)](
        queries, keys, lse, valid, grad, weighted, plain, c, starts, scaling * LOG2E,
        rows, heads // kv_heads, dim, heads, kv_heads, prompt, stored, blocks,
        *queries.stride()[:3], *keys.stride()[:3], *grad.stride()[:2],
        CAUSAL=True, VALID=valid is not None,
        BLOCK_R=triton.next_power_of_2(rows) if valid is not None else 1, **settings,
    )  # fmt: skip
    c = c.sum(0)
    return c, ((weighted.sum(0) - c[..., None] * plain.sum(0)) * scaling).to(queries.dtype)


def importance(
    queries: Tensor,
    keys: Tensor,
    scaling: float,
    prompt: int,
    first: int | Tensor | None = None,
    over: Literal["mean", "max"] = "mean",
    valid: Tensor | None = None,
    lse: Tensor | None = None,
) -> Tensor:
    """As eviction.importance.reference: [B, H, prompt] float32. `lse` [B, H, R] float32, natural, if known.

    `first` may be int32 [B], one a prompt: then columns beyond first[b] + R - 1 are 0.
    """
    out: Tensor = _run(queries, keys, scaling, 0, prompt, first, over, valid, lse, 0, 0, 1)
    return out


def grouped_importance(
    queries: Tensor,
    keys: Tensor,
    scaling: float,
    low: int,
    high: int,
    first: int | Tensor | None = None,
    over: Literal["mean", "max"] = "mean",
    valid: Tensor | None = None,
    lse: Tensor | None = None,
    group: Literal["mean", "max"] = "mean",
    pool: Literal["max", "avg"] | None = None,
    kernel: int = 1,
) -> Tensor:
    """Scores [B, K, high - low] float32 of prompt keys low … high - 1, grouped and then pooled.

    What lkv.eviction.select.candidate_scores makes of the importance in the order group_pool, in one kernel.
    """
    modes = {None: 0, "max": 1, "avg": 2}
    pooled = modes[pool] if kernel > 1 else 0
    grouping = 1 if group == "mean" else 2
    wide = kernel if pooled else 1
    out: Tensor = _run(queries, keys, scaling, low, high, first, over, valid, lse, grouping, pooled, wide)
    return out


def tile(dim: int) -> dict[str, int]:
    """Keys a program holds at a time, its warps, and how many loads run ahead."""
    return {"BLOCK_N": 64 if dim <= 128 else 32, "num_warps": 4, "num_stages": 3}


def _settings(rows: int, groups: int, dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """How observers are laid out: HEADS · PER_HEAD columns at a time, in CHUNKS."""
    heads = triton.next_power_of_2(groups)
    per_head = max(1, min(triton.next_power_of_2(rows), ROWS // heads), 16 // heads)
    return {
        "PER_HEAD": per_head,
        "HEADS": heads,
        "CHUNKS": triton.cdiv(rows, per_head),
        "BLOCK_D": max(16, triton.next_power_of_2(dim)),
        "DOT": dot_type(dtype),
        **tile(dim),
    }


def _run(
    queries: Tensor,
    keys: Tensor,
    scaling: float,
    low: int,
    high: int,
    first: int | Tensor | None,
    over: str,
    valid: Tensor | None,
    lse: Tensor | None,
    group: int,
    pool: int,
    kernel: int,
    with_lse: bool = False,
) -> Any:
    """The scores; `with_lse` also each row's base-2 log-sum-exp [B, H, R], contiguous."""
    batch, heads, rows, dim = queries.shape
    kv_heads, stored = keys.shape[1], keys.shape[2]
    out = queries.new_empty(batch, kv_heads if group else heads, high - low, dtype=torch.float32)
    if low == high:
        return out
    groups = heads // kv_heads
    settings = {"CAUSAL": first is not None, **_settings(rows, groups, dim, queries.dtype)}
    queries, keys = (x if x.stride(-1) == 1 else x.contiguous() for x in (queries, keys))
    sizes = (rows, groups, dim, heads, kv_heads)
    strides = (*queries.stride()[:3], *keys.stride()[:3])
    if isinstance(first, int):
        first = torch.full((batch,), first, dtype=torch.int32, device=queries.device)
    log2_scale = scaling * LOG2E
    pairs = batch * kv_heads
    if lse is None:
        blocks = triton.cdiv(stored, settings["BLOCK_N"])
        parts = min(blocks, max(1, PROGRAMS // pairs))
        top = torch.empty(parts, batch * heads, rows, device=queries.device)
        total = torch.empty_like(top)
        _stats[(parts, pairs)](
            queries, keys, top, total, first, log2_scale, *sizes, stored, blocks, *strides, **settings
        )
        lse, lse_scale = torch.empty(batch, heads, rows, device=queries.device), 1.0
        every = batch * heads * rows
        powers = triton.next_power_of_2(parts)
        _lse[(triton.cdiv(every, 16),)](top, total, lse, parts, every, BLOCK=16, PARTS=powers, num_warps=4)
    else:
        lse_scale = LOG2E
    halo = kernel // 2
    blocks = triton.cdiv(high - low, settings["BLOCK_N"] - 2 * halo)
    _mean[(min(blocks, max(1, PROGRAMS // pairs)), pairs)](
        queries, keys, lse, valid, out, first, log2_scale, *sizes, low, high, lse_scale, blocks, *strides,
        *lse.stride()[:2], *out.stride()[:2],
        VALID=valid is not None, OVER_MAX=over == "max", GROUP=group, POOL=pool, HALO=halo,
        BLOCK_R=triton.next_power_of_2(rows) if valid is not None else 1, **settings,
    )  # fmt: skip
    return (out, lse) if with_lse else out
