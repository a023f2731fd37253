"""Decode rows: many continuations that share one prompt's cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from lkv.cache.evictable import Layers
from lkv.cache.sizes import tensor_bytes


@dataclass(eq=False)
class Row:
    """One sequence ready to decode: keys and values [K, C_l, D] a layer, next position, last token int64 [].

    Keys and values are one tensor [L, K, C, D] where all layers hold the same, else a list. Its answer is
    drawn at `temperature` by `seed` (lkv.eviction.sampling); greedy at 0.
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
    storage (lkv.kernels.reference.shared), each token in the place that its slot says.
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
