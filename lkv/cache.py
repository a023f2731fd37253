"""Two caches: the prompt's (grows, can drop entries) and the decode rows' (fixed shape, unequal lengths).

Stored length is how many entries a layer holds; logical length is how many tokens it has seen. Rotary
positions follow the logical length: kept keys keep their positions, and decoding goes on at N.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer


class EvictableLayer(DynamicLayer):
    """A growing layer from which entries can be dropped, a different set in each KV head."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.evicted = 0

    @property
    def stored(self) -> int:
        return super().get_seq_length()

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


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def stored_bytes(cache: Cache) -> int:
    """Exact size of a cache's keys and values."""
    return sum(tensor_bytes(entries(cache, layer)) for layer in range(len(cache.layers)))


def kept_bytes(cache: Cache, kept: Sequence[Tensor] | None) -> int:
    """Exact size of a cache after `kept`, int64 [B, K, C_l] a full-attention layer, is all that they hold."""
    total = stored_bytes(cache)
    if kept is None:
        return total
    for layer, index in zip(full_layers(cache), kept, strict=True):
        held = entries(cache, layer)
        total -= tensor_bytes(held) * (held[0].shape[2] - index.shape[-1]) // held[0].shape[2]
    return total


@dataclass(eq=False)
class Row:
    """One sequence ready to decode: keys and values [K, C_l, D] a layer, next position, last token."""

    keys: list[Tensor]
    values: list[Tensor]
    position: int
    token: int

    @property
    def bytes(self) -> int:
        """Exact size of the kept keys and values."""
        return tensor_bytes((*self.keys, *self.values))


class _RowsLayer(DynamicLayer):
    """Fixed-shape storage of many rows: kept entries left, a slot for each new token right."""

    def __init__(
        self, keys: Sequence[Tensor], values: Sequence[Tensor], new: int, window: int | None
    ) -> None:
        super().__init__()
        kept = [k.shape[1] for k in keys]
        self.width, self.window, self.kept = max(kept), window, kept
        heads, _, dim = keys[0].shape
        shape = (len(keys), heads, self.width + new, dim)
        self.dtype, self.device, self.is_initialized = keys[0].dtype, keys[0].device, True
        self.keys = all_keys = torch.zeros(shape, dtype=self.dtype, device=self.device)
        self.values = all_values = torch.zeros_like(all_keys)
        self.mask = torch.zeros(len(keys), 1, 1, shape[2], dtype=torch.bool, device=self.device)
        for row, (k, v) in enumerate(zip(keys, values, strict=True)):
            all_keys[row, :, : k.shape[1]], all_values[row, :, : k.shape[1]] = k, v
            self.mask[row, ..., : k.shape[1]] = True
        self.slot = torch.full((1,), self.width - 1, dtype=torch.long, device=self.device)

    def advance(self) -> None:
        """Opens the next slot for every row; a sliding layer forgets the entry that leaves its window."""
        self.slot += 1
        self.mask.index_fill_(3, self.slot, True)
        if self.window is not None:
            age = int(self.slot) - self.width
            for row, kept in enumerate(self.kept):
                over = kept + age + 1 - self.window  # entries now outside the window, oldest first
                if over > 0:
                    self.mask[row, ..., : min(over, kept)] = False
                    self.mask[row, ..., self.width : self.width + max(0, over - kept)] = False

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None
        self.keys.index_copy_(2, self.slot, key_states)
        self.values.index_copy_(2, self.slot, value_states)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.mask.shape[-1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.mask.shape[-1], 0


class RowsCache(Cache):
    """Rows = samples × methods × budgets, decoded as one batch, one token a step."""

    def __init__(self, rows: Sequence[Row], new: int, windows: Sequence[int | None]) -> None:
        self.rows_layers = [
            _RowsLayer([r.keys[i] for r in rows], [r.values[i] for r in rows], new, window)
            for i, window in enumerate(windows)
        ]
        super().__init__(layers=list(self.rows_layers))

    def advance(self) -> list[Tensor]:
        """Makes room for the next token; returns each layer's mask, boolean [R, 1, 1, width]."""
        for layer in self.rows_layers:
            layer.advance()
        return [layer.mask for layer in self.rows_layers]


def windows(cache: Cache) -> list[int | None]:
    """Each layer's sliding window in tokens; None for full attention."""
    sliding = DynamicSlidingWindowLayer
    return [layer.sliding_window if isinstance(layer, sliding) else None for layer in cache.layers]
