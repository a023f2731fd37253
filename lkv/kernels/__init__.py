"""Triton kernels for CUDA, each with a reference in plain torch; `usable` says where they run.

scores   importance of prompt keys          eviction.importance, eviction.select.candidate_scores
topk     the C best entries of each row     eviction.select.keep
gather   kept entries of all layers         cache.evictable.gather
blocks   norms, rotary positions, SwiGLU    reference
decode   one token a row, unequal lengths   reference.attend_rows, reference.attend_shared
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor

log = logging.getLogger("lkv")
CAPABILITY = (8, 0)  # bfloat16 matrix products
MAX_HEAD_DIM = 256


def usable(tensor: Tensor, head_dim: int = 0) -> bool:
    """Whether the kernels take this tensor (and heads so wide). Where not, on a GPU, one notice says why."""
    return tensor.is_cuda and _usable(tensor.device, tensor.dtype, head_dim)


@cache
def _usable(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    reason = None
    if torch.cuda.get_device_capability(device) < CAPABILITY:
        reason = f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
    elif dtype not in (torch.bfloat16, torch.float16, torch.float32):
        reason = f"they do not take {dtype}"
    elif head_dim > MAX_HEAD_DIM:
        reason = f"heads of {head_dim} are wider than {MAX_HEAD_DIM}"
    else:
        try:
            import triton  # noqa: F401
        except ImportError:
            reason = "triton is not installed"
    if reason is not None:
        _say(reason)
    return reason is None


@cache  # once a reason
def _say(reason: str) -> None:
    log.warning("fused kernels are off, plain torch runs instead: %s", reason)
