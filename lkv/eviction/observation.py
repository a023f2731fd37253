"""From what a layer attends to what its observers are given: queries, keys, and who sees how much."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from lkv.cache.evictable import full_layers, prompt_cache
from lkv.eviction.importance import ObserverInputs, importance
from lkv.interface import Attended, Importance, PromptRows, Tail
from lkv.model.rope import length_dependent

Observe: TypeAlias = Callable[[Attended], None]


def embedded(model: PreTrainedModel, tail: Tail) -> Tensor:
    """A tail's embeddings [B, R, hidden] in the model's dtype."""
    if tail.tokens.is_floating_point():
        return tail.tokens.to(model.dtype)
    return model.get_input_embeddings()(tail.tokens)


def allows_single_pass(model: PreTrainedModel) -> bool:
    """Whether a tail can be part of the prefill.

    Not with sliding layers, where it would push entries out, nor with rotations that depend on the length,
    where it would change the prompt's own keys.
    """
    cache = prompt_cache(model.config)
    return len(full_layers(cache)) == len(cache.layers) and not length_dependent(model)


def recorder(cache: Cache, recorded: dict[PromptRows, Importance], fed: int) -> Observe:
    """A `Pass.observe` that appends to `recorded`, layer by layer, the importance by rows of `fed` tokens."""
    evictable = set(full_layers(cache))

    def record(attended: Attended) -> None:
        if attended.layer in evictable:
            stored = attended.key.shape[2] - attended.query.shape[2] + fed
            for row, of_row in recorded.items():
                of_row.append(importance(prompt_row_inputs(row, attended, stored, fed)))

    return record


def prompt_row_inputs(row: PromptRows, attended: Attended, stored: int, fed: int) -> ObserverInputs:
    """Rows of the `fed` prompt tokens, which are the first of the query and the last of `stored` keys."""
    last = fed if row.last is None else min(row.last, fed)
    rows = slice(fed - last, fed)
    return ObserverInputs(
        attended.query[:, :, rows],
        attended.key[:, :, :stored],
        attended.scaling,
        stored,
        causal_offset=stored - last,
        reduction=row.reduction,
        lse=None if attended.lse is None else attended.lse[:, :, rows],
    )


def last_row_inputs(row: PromptRows, attended: Attended, lengths: Tensor) -> ObserverInputs:
    """The last rows of prompts of unequal `lengths` [B]; nobody sees the padding behind them."""
    query, stored = attended.query, attended.key.shape[2]
    if row.last is None:
        real = torch.arange(stored, device=lengths.device) < lengths[:, None]
        offset = torch.zeros_like(lengths)
        return ObserverInputs(
            query, attended.key, attended.scaling, stored, offset, row.reduction, real, attended.lse
        )
    offset = lengths - row.last
    at = (offset[:, None] + torch.arange(row.last, device=lengths.device))[:, None]
    return ObserverInputs(
        query.gather(2, at[..., None].expand(-1, query.shape[1], -1, query.shape[3])),
        attended.key,
        attended.scaling,
        stored,
        causal_offset=offset,
        reduction=row.reduction,
        lse=None if attended.lse is None else attended.lse.gather(2, at.expand(-1, query.shape[1], -1)),
    )


def tail_inputs(tail: Tail, attended: Attended, stored: int) -> ObserverInputs:
    """A tail, whose rows are the last of a pass, over `stored` entries."""
    return ObserverInputs(
        attended.query[:, :, -tail.rows :],
        attended.key,
        attended.scaling,
        stored,
        causal_offset=stored,
        reduction=tail.reduction,
        valid=tail.valid,
        lse=None if attended.lse is None else attended.lse[:, :, -tail.rows :],
    )
