"""Two caches: the prompt's (grows, can drop entries) and the decode rows' (fixed shape, unequal lengths).

Stored length is how many entries a layer holds; logical length is how many tokens it has seen. Rotary
positions follow the logical length: kept keys keep their positions, and decoding goes on at N.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import Cache, DynamicLayer

Layers: TypeAlias = "Tensor | Sequence[Tensor]"  # one tensor a layer; one tensor of all where shapes agree


class EvictableLayer(DynamicLayer):
    """A growing layer from which entries can be dropped, a different set in each KV head."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.evicted = 0

    @property
    def stored(self) -> int:
        return super().get_seq_length()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.stored:
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states, value_states  # the prompt itself: concatenating would copy it
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return super().get_seq_length() + self.evicted

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return super().get_seq_length() + query_length, self.evicted

    def keep(self, kept: Tensor) -> None:
        """kept: int64 [B, K, C], ascending stored entries."""
        assert self.keys is not None and self.values is not None
        self.evicted += self.stored - kept.shape[-1]
        self.keys, self.values = gather(self.keys, kept), gather(self.values, kept)


def gather(entries: Tensor, kept: Tensor) -> Tensor:
    """entries [B, K, M, D], kept int64 [B, K, C] → [B, K, C, D]."""
    return entries.gather(2, kept[..., None].expand(-1, -1, -1, entries.shape[-1]))


def prompt_cache(config: PretrainedConfig) -> DynamicCache:
    """A cache whose full-attention layers are evictable; sliding-window layers stay as they are."""
    cache = DynamicCache(config=config)
    make_evictable(cache)
    return cache


def make_evictable(cache: Cache) -> None:
    """Swaps the still empty plain layers of a cache that somebody else made (model.generate's)."""
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = EvictableLayer
    cache.layers = [EvictableLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]


def full_layers(cache: Cache) -> list[int]:
    """Indices of the layers that see the whole prompt, and so can be evicted from."""
    return [i for i, layer in enumerate(cache.layers) if isinstance(layer, EvictableLayer)]


def entries(cache: Cache, layer: int) -> tuple[Tensor, Tensor]:
    """Keys and values [B, K, M, D] that a layer holds."""
    held = cache.layers[layer]
    assert isinstance(held, DynamicLayer) and held.keys is not None and held.values is not None
    return held.keys, held.values


def check_held(held: Sequence[int], counts: Sequence[int]) -> None:
    """Asserts after an eviction that each full-attention layer holds what it should."""
    if list(held) != list(counts):
        raise AssertionError(f"after an eviction to {list(counts)} entries the layers hold {list(held)}")
