"""Bytes that a cache holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from lkv.cache.evictable import entries, full_layers


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def stored_bytes(cache: Cache) -> int:
    """Exact size of a cache's keys and values."""
    return sum(tensor_bytes(entries(cache, layer)) for layer in range(len(cache.layers)))


def entry_bytes(model: PreTrainedModel) -> int:
    """Bytes of one token's keys and values over all layers."""
    config = model.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim
    return int(numbers * model.dtype.itemsize)


def kept_bytes(cache: Cache, counts: Sequence[int] | None) -> int:
    """Exact size of a cache after its full-attention layers hold `counts` entries (None: all they hold)."""
    total = stored_bytes(cache)
    if counts is None:
        return total
    for layer, count in zip(full_layers(cache), counts, strict=True):
        held = entries(cache, layer)
        stored = held[0].shape[2]
        total -= tensor_bytes(held) // stored * (stored - count)
    return total
