"""Kept entries of all layers gathered by one launch: a table of addresses stands for the layers' tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _gather(
    table_ptr, kept_ptr, out_ptr, layers, K, C, D, ALIGNED: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Entries of one tensor and head; a table's row: address, head stride, entry stride."""
    tensor, head = (tl.program_id(1) // K).to(tl.int64), (tl.program_id(1) % K).to(tl.int64)
    source = tl.load(table_ptr + 3 * tensor).to(out_ptr.dtype)
    head_stride, entry_stride = tl.load(table_ptr + 3 * tensor + 1), tl.load(table_ptr + 3 * tensor + 2)
    if ALIGNED:  # lets the compiler load 16 bytes at a time
        source = tl.multiple_of(source, 16)
        head_stride, entry_stride = tl.multiple_of(head_stride, 8), tl.multiple_of(entry_stride, 8)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    dims = tl.arange(0, BLOCK_D)
    chosen = tl.load(kept_ptr + ((tensor % layers) * K + head) * C + c, mask=c < C, other=0)
    mask = (c[:, None] < C) & (dims[None, :] < D)
    entries = tl.load(source + head * head_stride + chosen[:, None] * entry_stride + dims[None, :], mask=mask)
    tl.store(out_ptr + ((tensor * K + head) * C + c[:, None]) * D + dims[None, :], entries, mask=mask)


def gather(tensors: Sequence[Tensor], kept: Tensor) -> Tensor:
    """tensors: a prompt's keys, one [K, M_l, D] a layer, and then its values; kept int64 [L, K, C].

    Returns [2, L, K, C, D].
    """
    layers, kv_heads, count = kept.shape
    dim = tensors[0].shape[2]
    out = tensors[0].new_empty(2, layers, kv_heads, count, dim)
    rows = [[tensor.data_ptr(), tensor.stride(0), tensor.stride(1)] for tensor in tensors]
    size = out.element_size()
    aligned = all(
        address % 16 == 0 and head * size % 16 == 0 and entry * size % 16 == 0
        for address, head, entry in rows
    )
    table = torch.tensor(rows).to(out.device, non_blocking=True)
    grid = (triton.cdiv(count, 32), 2 * layers * kv_heads)
    _gather[grid](
        table, kept.contiguous(), out, layers, kv_heads, count, dim,
        ALIGNED=aligned, BLOCK_C=32, BLOCK_D=triton.next_power_of_2(dim), num_warps=4,
    )  # fmt: skip
    return out
