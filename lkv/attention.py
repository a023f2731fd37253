"""The attention function that models call: transformers' own, plus a window for observers.

A forward pass may carry a `Pass` (keyword `lkv_pass`, which transformers hands down to every layer's
attention). No class is patched and no module keeps state between passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SDPA, FLASH = "lkv_sdpa", "lkv_flash"
BACKEND_NAMES = {SDPA: "sdpa", FLASH: "flash_attention_2"}


@dataclass
class Pass:
    """What one forward pass carries to each layer's attention.

    observe(layer, query [B, H, Q, D], key [B, K, M, D], scaling) runs before the layer attends; masks holds
    one boolean [B, 1, 1, M] a layer for single-token passes over rows of unequal length.
    """

    observe: Callable[[int, Tensor, Tensor, float], None] | None = None
    masks: Sequence[Tensor] | None = None


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    lkv_pass: Pass | None = None,
    prefill: Callable[..., tuple[Tensor, None]] = sdpa_attention_forward,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query [B, H, Q, D], key and value [B, K, M, D] → [B, Q, H, D]. Queries are the last Q of M keys.

    Causality is aligned to the *end* of the stored keys. SDPA's own causal flag aligns to the start, which is
    wrong for several tokens after an eviction; so every case is spelt out here.
    """
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if lkv_pass is not None and lkv_pass.observe is not None:
        lkv_pass.observe(layer, query, key, scale)
    if lkv_pass is not None and lkv_pass.masks is not None:
        return _grouped(query, key, value, lkv_pass.masks[layer], scale), None
    rows, stored = query.shape[2], key.shape[2]
    if attention_mask is not None:  # sliding layers and padded batches: the model's own mask
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scale, **kwargs
        )
    if rows == stored:
        return prefill(module, query, key, value, None, dropout=dropout, scaling=scale, **kwargs)
    mask = None
    if rows > 1:
        mask = torch.ones(rows, stored, dtype=torch.bool, device=query.device).tril(stored - rows)
    return _grouped(query, key, value, mask, scale), None


def _grouped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention with a KV head's query heads folded into rows, so that keys are never repeated.

    mask: None, [Q, M] or [B, 1, 1, M]. Returns [B, Q, H, D].
    """
    batch, heads, rows, dim = query.shape
    kv_heads = key.shape[1]
    if mask is not None and mask.dim() == 2:
        mask = mask.repeat(heads // kv_heads, 1)
    out = F.scaled_dot_product_attention(
        query.reshape(batch, kv_heads, -1, dim), key, value, attn_mask=mask, scale=scale
    )
    return out.reshape(batch, heads, rows, dim).transpose(1, 2)


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """No mask for full attention without padding: `attention` knows its causality, whatever was evicted."""
    padding = kwargs.get("attention_mask")
    if kwargs.get("local_size") is None and (padding is None or bool(padding.all())):
        return None
    return sdpa_mask(*args, **kwargs)


# Registering names is additive: no model uses them until `set_attn_implementation` is called on it.
AttentionInterface.register(SDPA, attention)
AttentionInterface.register(FLASH, partial(attention, prefill=flash_attention_forward))
AttentionMaskInterface.register(SDPA, _mask)
AttentionMaskInterface.register(FLASH, _mask)


def best_backend(device: torch.device, dtype: torch.dtype) -> str:
    """FlashAttention 2 for prefill where it is importable and the model runs on CUDA in half precision."""
    half = dtype in (torch.float16, torch.bfloat16)
    return FLASH if device.type == "cuda" and half and find_spec("flash_attn") is not None else SDPA


@contextmanager
def observable(model: PreTrainedModel) -> Iterator[str]:
    """Inside, the model attends through `attention`; its own implementation comes back at the end."""
    before = model.config._attn_implementation
    if before in BACKEND_NAMES:
        yield before
        return
    name = best_backend(model.device, model.dtype)
    model.set_attn_implementation(name)
    try:
        yield name
    finally:
        model.set_attn_implementation(before)
