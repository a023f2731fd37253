"""Hooks of a prefill that record the importance of its keys."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from lkv.cache.evictable import full_layers, prompt_cache
from lkv.eviction import importance as maths
from lkv.eviction.importance import Sight
from lkv.interface import Importance, PromptRows, Tail
from lkv.model.rope import length_dependent

Watch = Callable[[int, Tensor, Tensor, float, "Tensor | None"], None]


def embedded(model: PreTrainedModel, tail: Tail) -> Tensor:
    if tail.tokens.is_floating_point():
        return tail.tokens.to(model.dtype)
    return model.get_input_embeddings()(tail.tokens)


def rides_along(model: PreTrainedModel) -> bool:
    """Whether a tail can share the prefill: not with sliding layers, where it would push entries out, nor
    with rotations that depend on the length, where it would change the prompt's own keys."""
    cache = prompt_cache(model.config)
    return len(full_layers(cache)) == len(cache.layers) and not length_dependent(model)


def watcher(cache: Cache, seen: dict[PromptRows, Importance], fed: int) -> Watch:
    """A `Pass.observe` that fills `seen`, layer by layer, with what rows of the `fed` prompt tokens see."""
    evictable = set(full_layers(cache))

    def record(layer: int, query: Tensor, key: Tensor, scaling: float, lse: Tensor | None) -> None:
        if layer not in evictable:
            return
        stored = key.shape[2] - query.shape[2] + fed
        for row, importance in seen.items():
            sight = by_prompt_rows(row, query, key, scaling, stored, fed, lse)
            importance.append(maths.importance(sight))

    return record


def by_prompt_rows(
    row: PromptRows, query: Tensor, key: Tensor, scaling: float, stored: int, fed: int, lse: Tensor | None
) -> Sight:
    """What rows of the `fed` prompt tokens see, which are the first of `query` and the last of `stored`."""
    last = fed if row.last is None else min(row.last, fed)
    rows = slice(fed - last, fed)
    known = None if lse is None else lse[:, :, rows]
    return Sight(query[:, :, rows], key[:, :, :stored], scaling, stored, stored - last, row.over, lse=known)


def by_last_rows(
    row: PromptRows, query: Tensor, key: Tensor, scaling: float, lengths: Tensor, lse: Tensor | None
) -> Sight:
    """What the last rows of prompts of unequal `lengths` see; padding behind them is seen by nobody."""
    stored = key.shape[2]
    if row.last is None:
        real = torch.arange(stored, device=lengths.device) < lengths[:, None]
        return Sight(query, key, scaling, stored, torch.zeros_like(lengths), row.over, real, lse)
    first = lengths - row.last
    at = (first[:, None] + torch.arange(row.last, device=lengths.device))[:, None]
    rows = query.gather(2, at[..., None].expand(-1, query.shape[1], -1, query.shape[3]))
    known = None if lse is None else lse.gather(2, at.expand(-1, lse.shape[1], -1))
    return Sight(rows, key, scaling, stored, first, row.over, lse=known)


def by_tail(tail: Tail, query: Tensor, key: Tensor, scaling: float, stored: int, lse: Tensor | None) -> Sight:
    """What a tail sees of `stored` entries; its rows are the last of a pass."""
    rows = query[:, :, -tail.rows :]
    known = None if lse is None else lse[:, :, -tail.rows :]
    return Sight(rows, key, scaling, stored, stored, tail.over, tail.valid, known)
