"""The attention function that models call: transformers' own, plus a window for observers.

A forward pass may carry a `Pass` (keyword `lkv_pass`, which transformers hands down to every layer's
attention). No class is patched and no module keeps state between passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lkv.errors import UserError
from lkv.interface import Attended

if TYPE_CHECKING:
    from lkv.cache.rows import RowsCache


# transformers takes names with "flash" or "sdpa" in them for its own: it looks for the one on the hub, and
# asks whether the model supports the other.
SDPA, FLASH = "lkv_torch", "lkv_fa2"
BACKEND_NAMES = {SDPA: "sdpa", FLASH: "flash_attention_2"}

Watchman: TypeAlias = "Callable[[nn.Module, int], None]"
_watchmen: list[Watchman] = []  # told of each prefill that carries no Pass: (attention module, tokens)


class Unsupported(UserError):
    """The model's attention does something that this one lacks."""


@dataclass
class Pass:
    """What one forward pass carries to each layer's attention.

    observe(attended) is called as each layer attends, finished(layer) when it has. rows: the pass feeds one
    token to each row of this cache.
    """

    observe: Callable[[Attended], None] | None = None
    finished: Callable[[int], None] | None = None
    rows: RowsCache | None = None


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    lkv_pass: Pass | None = None,
    flash: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """For transformers' models: query [B, H, Q, D], key and value [B, K, M, D] → [B, Q, H, D].

    Causality is aligned to the *end* of the stored keys. SDPA's own causal flag aligns to the start, which is
    wrong for several tokens after an eviction; so every case is spelt out here.
    """
    _check(query, value, kwargs)
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    rows, stored = query.shape[2], key.shape[2]
    if lkv_pass is None:
        if rows == stored:
            for watchman in _watchmen:
                watchman(module, rows)
    elif lkv_pass.observe is not None:
        lkv_pass.observe(Attended(layer, query, key, value, scale))
    if lkv_pass is not None and lkv_pass.rows is not None:
        out = _grouped(query, key, value, lkv_pass.rows.visible(layer), scale)
    elif attention_mask is not None:  # sliding layers and padded batches: the model's own mask
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scale, **kwargs
        )
    elif rows == stored and flash and query.is_cuda:
        out, _ = _flash_attn(query, key, value, scale)
    elif rows == stored:
        out, _ = sdpa_attention_forward(
            module, query, key, value, None, dropout=dropout, scaling=scale, **kwargs
        )
    else:
        out = _after(query, key, value, scale)
    if lkv_pass is not None and lkv_pass.finished is not None:
        lkv_pass.finished(layer)
    return out, None


def _check(query: Tensor, value: Tensor, kwargs: dict[str, Any]) -> None:
    """Raises Unsupported for what models hand to their attention and this one would pass over."""
    if kwargs.get("softcap") is not None:
        raise Unsupported("its attention caps the logits (softcap), which SDPA cannot")
    if kwargs.get("s_aux") is not None:
        raise Unsupported("its attention has learned sinks, which SDPA cannot")
    if value.shape[-1] != query.shape[-1]:
        raise Unsupported("its values have another head size than its keys")


@contextmanager
def watching(watchman: Watchman) -> Iterator[None]:
    """Inside, `watchman` is told of each prefill through `attention` that carries no Pass."""
    _watchmen.append(watchman)
    try:
        yield
    finally:
        _watchmen.remove(watchman)


def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> tuple[Tensor, Tensor | None]:
    """For the block loop: causal attention of the last Q of M tokens, query [B, H, Q, D] → [B, Q, H, D].

    Second come the rows' natural log-sum-exp [B, H, Q], float32, where the kernel gives them.
    """
    if query.is_cuda and query.dtype != torch.float32 and not query.requires_grad:
        if _has_flash_attn():
            return _flash_attn(query, key, value, scaling)
        if query.shape[2] == key.shape[2] and torch.cuda.get_device_capability(query.device) >= (9, 0):
            # cuDNN is SDPA's own choice there, and nearly twice as fast as FlashAttention 2.
            out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
                query, key, value, None, True, 0.0, True, scale=scaling
            )
            return out.transpose(1, 2), lse.squeeze(-1)
        # FlashAttention 2 aligns causality to the end, and shares keys among the heads of a group.
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, is_causal=True, scale=scaling
        )
        return out.transpose(1, 2), lse
    if query.shape[2] == key.shape[2]:
        out = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2), None
    return _after(query, key, value, scaling), None


@cache
def _has_flash_attn() -> bool:
    return find_spec("flash_attn") is not None


def _flash_attn(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    from flash_attn import flash_attn_func

    tensors = [tensor.transpose(1, 2) for tensor in (query, key, value)]
    out, lse, _ = flash_attn_func(*tensors, softmax_scale=scaling, causal=True, return_attn_probs=True)
    return out, lse


def _after(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """The last Q of M tokens, Q < M."""
    rows, stored = query.shape[2], key.shape[2]
    mask = None
    if rows > 1:
        mask = torch.ones(rows, stored, dtype=torch.bool, device=query.device).tril(stored - rows)
    return _grouped(query, key, value, mask, scale)


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
AttentionInterface.register(FLASH, partial(attention, flash=True))
AttentionMaskInterface.register(SDPA, _mask)
AttentionMaskInterface.register(FLASH, _mask)


def best_backend(device: torch.device, dtype: torch.dtype) -> str:
    """FlashAttention 2 for prefill where it is importable and the model runs on CUDA in half precision."""
    half = dtype in (torch.float16, torch.bfloat16)
    return FLASH if device.type == "cuda" and half and _has_flash_attn() else SDPA


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


def require_observable(model: PreTrainedModel) -> None:
    """Under another attention function the observers would silently see nothing."""
    if model.config._attn_implementation not in BACKEND_NAMES:
        raise UserError(
            f"the model attends through {model.config._attn_implementation!r}, where observers see nothing; "
            "load it with lkv.model.load.load, or work inside `with lkv.model.attention.observable(model):`"
        )
