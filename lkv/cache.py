"""Two caches: the prompt's (grows, can drop entries) and the decode rows' (fixed shape, unequal lengths).

Stored length is how many entries a layer holds; logical length is how many tokens it has seen. Rotary
positions follow the logical length: kept keys keep their positions, and decoding goes on at N.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

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


@dataclass(eq=False)
class Row:
    """One sequence ready to decode: keys and values [K, C_l, D] a layer, next position, last token int64 [].

    Keys and values are one tensor [L, K, C, D] where all layers hold the same, else a list. Its answer is
    drawn at `temperature` by `seed` (lkv.sampling); greedy at 0.
    """

    keys: Layers
    values: Layers
    position: int
    token: Tensor
    temperature: float = 0.0
    seed: int = 0

    @property
    def bytes(self) -> int:
        """Exact size of the kept keys and values."""
        return tensor_bytes((*self.keys, *self.values))

    @property
    def width(self) -> int:
        """Entries of the layer that holds most."""
        return max(keys.shape[1] for keys in self.keys)


class _RowsLayer(DynamicLayer):
    """Fixed-shape storage of one layer: keys and values [R, K, W, D]; row r's next entry is slots[r]."""

    def __init__(self, keys: Tensor, values: Tensor, slots: Tensor, window: int | None) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.keys, self.values, self.slots, self.window = keys, values, slots, window

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None
        rows = torch.arange(len(self.slots), device=self.slots.device)
        self.keys[rows, :, self.slots] = key_states[:, :, 0]
        self.values[rows, :, self.slots] = value_states[:, :, 0]
        return self.keys, self.values

    def visible(self) -> Tensor:
        """What each row's newest token sees, itself included: boolean [R, 1, 1, W]."""
        assert self.keys is not None
        entry, newest = torch.arange(self.keys.shape[2], device=self.slots.device), self.slots[:, None]
        seen = entry <= newest
        if self.window is not None:
            seen &= entry > newest - self.window
        return seen[:, None, None]

    def get_seq_length(self) -> int:
        assert self.keys is not None
        return int(self.keys.shape[2])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length(), 0


class RowsCache(Cache):
    """Rows = samples × methods × budgets, decoded as one batch, one token a step, each into its own slots.

    keys and values are the storage, [R, K, W, D] a layer; slots int64 [L, R] are each row's next entries.
    A step reads nothing from it to the host, so that it can be captured and replayed. Rows may share one
    storage (lkv.blocks.shared), each token in the place that its slot says.
    """

    def __init__(self, keys: Layers, values: Layers, windows: Sequence[int | None]) -> None:
        self.keys, self.values = keys, values
        self.slots = torch.zeros(len(windows), keys[0].shape[0], dtype=torch.long, device=keys[0].device)
        layers = zip(keys, values, self.slots, windows, strict=True)
        super().__init__(layers=[_RowsLayer(*layer) for layer in layers])

    def visible(self, layer: int) -> Tensor:
        """What each row's newest token sees, itself included: boolean [R, 1, 1, W]."""
        held = self.layers[layer]
        assert isinstance(held, _RowsLayer)
        return held.visible()

    def load(self, rows: Sequence[Row]) -> None:
        """Puts rows into the first places; places that are left see their own new tokens alone."""
        counts = torch.tensor([[keys.shape[1] for keys in row.keys] for row in rows]).T
        self.slots.zero_()
        self.slots[:, : len(rows)] = counts.to(self.slots.device, non_blocking=True)
        for r, row in enumerate(rows):
            for held, new in ((self.keys, row.keys), (self.values, row.values)):
                if isinstance(held, Tensor) and isinstance(new, Tensor):
                    held[:, r, :, : new.shape[2]] = new
                else:
                    for of_layer, entries in zip(held, new, strict=True):
                        of_layer[r, :, : entries.shape[1]] = entries

    def row(self, place: int, before: Row, fed: int, token: Tensor) -> Row:
        """A copy of the row at a place, which `fed` tokens ago was `before`."""
        counts = [keys.shape[1] + fed for keys in before.keys]

        def copied(held: Layers) -> Layers:
            if isinstance(held, Tensor) and len(set(counts)) == 1:
                return held[:, place, :, : counts[0]].clone()
            return [layer[place, :, :count].clone() for layer, count in zip(held, counts, strict=True)]

        keys, values = copied(self.keys), copied(self.values)
        return replace(before, keys=keys, values=values, position=before.position + fed, token=token)


def windows(cache: Cache) -> list[int | None]:
    """Each layer's sliding window in tokens; None for full attention."""
    sliding = DynamicSlidingWindowLayer
    return [layer.sliding_window if isinstance(layer, sliding) else None for layer in cache.layers]
