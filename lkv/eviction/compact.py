"""compact: the kept entries of a cache, copied into rows of their own or left alone in the cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from lkv import kernels
from lkv.cache.evictable import EvictableLayer, Layers, check_held, entries, full_layers, gather
from lkv.cache.rows import Row
from lkv.eviction.prefilled import Prefilled
from lkv.eviction.select import Kept


@torch.no_grad()
def compact(prefilled: Prefilled, kept: Kept | None) -> list[Row]:
    """Copies the kept entries (None: all, uncopied) out of the cache: one Row a prompt of the batch."""
    cache = prefilled.cache
    held = [entries(cache, layer) for layer in range(len(cache.layers))]
    keys, values = [k for k, _ in held], [v for _, v in held]
    rows = range(len(prefilled.first))
    if kept is None:
        return [_row(prefilled, [k[b] for k in keys], [v[b] for v in values], b) for b in rows]
    layers = full_layers(cache)
    if len(kept) == len(held) and kernels.usable(keys[0]):
        made = [_compact_fused(prefilled, kept, [*keys, *values], b) for b in rows]
    else:
        for i, index in zip(layers, kept, strict=True):
            keys[i], values[i] = gather(keys[i], index), gather(values[i], index)
        made = [_row(prefilled, [k[b] for k in keys], [v[b] for v in values], b) for b in rows]
    for row in made:
        check_held([row.keys[i].shape[1] for i in layers], kept.counts)
    return made


def compact_in_place(cache: Cache, kept: Kept | None) -> None:
    """Drops all but the kept entries from a cache's full-attention layers; None keeps all."""
    if kept is None:
        return
    layers = full_layers(cache)
    for i, index in zip(layers, kept, strict=True):
        compact_layer(cache, i, index)
    check_held([entries(cache, i)[0].shape[2] for i in layers], kept.counts)


def compact_layer(cache: Cache, layer: int, index: Tensor) -> None:
    """Drops all but the entries `index`, int64 [B, K, C], from one layer."""
    held = cache.layers[layer]
    assert isinstance(held, EvictableLayer)
    held.keep(index)


def _row(prefilled: Prefilled, keys: Layers, values: Layers, b: int) -> Row:
    how = prefilled.answering
    return Row(keys, values, prefilled.length, prefilled.first[b], how.temperature, how.seed + b)


def _compact_fused(prefilled: Prefilled, kept: Kept, tensors: Sequence[Tensor], b: int) -> Row:
    from lkv.kernels.gather import gather as fused

    keys, values = fused([tensor[b] for tensor in tensors], kept.indices[:, b])
    if not kept.uniform:
        cut = [(k[:, :n], v[:, :n]) for k, v, n in zip(keys, values, kept.counts, strict=True)]
        return _row(prefilled, [k for k, _ in cut], [v for _, v in cut], b)
    return _row(prefilled, keys, values, b)
