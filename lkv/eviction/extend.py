"""More prompt, read on what an eviction left of the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lkv.cache.evictable import EvictableLayer, full_layers, prompt_cache
from lkv.eviction.observation import watcher
from lkv.eviction.prefilled import Prefilled, first_tokens, row_seeds
from lkv.eviction.select import Kept
from lkv.interface import Importance, PromptRows
from lkv.model.attention import Pass
from lkv.model.forward import states


@torch.no_grad()
def extend(
    prefilled: Prefilled, kept: Kept | None, ids: Tensor, rows: Sequence[PromptRows] = ()
) -> Prefilled:
    """More prompt, ids int64 [B, n], read on what `kept` (None: all) leaves of the cache; the rest is gone.

    Returns a new Prefilled, whose `rows` are among the n new tokens; the given one is unchanged.
    """
    model, before, new = prefilled.model, prefilled.length, ids.shape[1]
    cache = prompt_cache(model.config)
    for layer, old in zip(cache.layers, prefilled.cache.layers, strict=True):
        vars(layer).update(vars(old))  # references: keep and the pass below make new tensors
    if kept is not None:
        for i, index in zip(full_layers(cache), kept, strict=True):
            layer = cache.layers[i]
            assert isinstance(layer, EvictableLayer)
            layer.keep(index)
    seen: dict[PromptRows, Importance] = {row: [] for row in rows}
    carried = Pass(observe=watcher(cache, seen, new) if rows else None)
    positions = torch.arange(before, before + new, device=ids.device)[None]
    out = states(model, model.get_input_embeddings()(ids), positions, cache, carried)
    seeds, drawing = row_seeds(prefilled.seed, len(ids)), (prefilled.banned, prefilled.temperature)
    first = first_tokens(model, out[:, -1], positions[:, -1], seeds, *drawing)
    whole = torch.cat([prefilled.ids, ids], 1)
    return replace(prefilled, ids=whole, cache=cache, first=first, seen=seen, question=None, _answers=None)
