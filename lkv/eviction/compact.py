"""compact: the kept entries of a cache, gathered into a row of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lkv import kernels
from lkv.cache.evictable import Layers, check_held, entries, full_layers, gather
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
    layers = full_layers(cache)
    if kept is not None and len(kept) == len(held) and kernels.usable(keys[0]):
        made = [_compact_fused(prefilled, kept, [*keys, *values], b) for b in rows]
    else:
        if kept is not None:
            for i, index in zip(layers, kept, strict=True):
                keys[i], values[i] = gather(keys[i], index), gather(values[i], index)
        made = [_row(prefilled, [k[b] for k in keys], [v[b] for v in values], b) for b in rows]
    if kept is not None:
        for row in made:
            check_held([row.keys[i].shape[1] for i in layers], kept.counts)
    return made


def _row(prefilled: Prefilled, keys: Layers, values: Layers, b: int) -> Row:
    seed = prefilled.seed + b
    return Row(keys, values, prefilled.length, prefilled.first[b], prefilled.temperature, seed)


def _compact_fused(prefilled: Prefilled, kept: Kept, tensors: Sequence[Tensor], b: int) -> Row:
    from lkv.kernels.gather import gather as fused

    keys, values = fused([tensor[b] for tensor in tensors], kept.indices[:, b])
    if not kept.uniform:
        cut = [(k[:, :n], v[:, :n]) for k, v, n in zip(keys, values, kept.counts, strict=True)]
        return _row(prefilled, [k for k, _ in cut], [v for _, v in cut], b)
    return _row(prefilled, keys, values, b)
