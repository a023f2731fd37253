"""More prompt, read on what an eviction left of the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lkv.cache.evictable import prompt_cache
from lkv.eviction.compact import compact_in_place
from lkv.eviction.observation import recorder
from lkv.eviction.prefilled import Prefilled, first_tokens
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
        vars(layer).update(vars(old))  # references: what follows makes new tensors
    compact_in_place(cache, kept)
    recorded: dict[PromptRows, Importance] = {row: [] for row in rows}
    hooks = Pass(observe=recorder(cache, recorded, new) if rows else None)
    positions = torch.arange(before, before + new, device=ids.device)[None]
    out = states(model, model.get_input_embeddings()(ids), positions, cache, hooks)
    return replace(
        prefilled,
        ids=torch.cat([prefilled.ids, ids], 1),
        cache=cache,
        first=first_tokens(model, out[:, -1], positions[:, -1], prefilled.answering),
        recorded=recorded,
        question=None,
        answers=None,
        scores=None,
    )
