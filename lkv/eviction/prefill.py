"""Prefill: a prompt read once into a cache that every method and every budget is evicted from.

A batch of `prefill` holds prompts of one length; `prefill_many` reads prompts of any lengths, padded behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from lkv.cache.evictable import EvictableLayer, entries, full_layers, prompt_cache
from lkv.eviction import importance as maths
from lkv.eviction.observation import by_last_rows, by_tail, embedded, rides_along, watcher
from lkv.eviction.prefilled import Prefilled, check_room, drawing_settings, first_tokens, row_seeds
from lkv.interface import Importance, PromptRows, Tail
from lkv.model.architecture import ours
from lkv.model.attention import Pass, require_observable
from lkv.model.forward import states
from lkv.model.rope import length_dependent
from lkv.model.support import require_evictable

AT_ONCE = 1 << 26  # numbers in a prefill's hidden states: more keep a GPU no busier


@torch.no_grad()
def prefill(
    model: PreTrainedModel,
    ids: Tensor,
    rows: Sequence[PromptRows] = (),
    tail: Tail | None = None,
    **settings: Any,
) -> tuple[Prefilled, Importance | None]:
    """Runs the prompt once. ids int64 [B, N].

    Records the importance that each of `rows` sees as the pass goes. With a `tail` its importance comes back
    second. It rides along in the same pass (single pass), where that changes nothing of the prompt's own, and
    its keys are gone from the cache; else it looks in a pass of its own.
    """
    length = ids.shape[1]
    cache = prompt_cache(model.config)
    seen: dict[PromptRows, Importance] = {row: [] for row in rows}
    ahead: Importance = []
    watch_rows = watcher(cache, seen, length)
    riding = tail if rides_along(model) else None

    def record(layer: int, query: Tensor, key: Tensor, scaling: float, lse: Tensor | None) -> None:
        watch_rows(layer, query, key, scaling, lse)
        if riding is not None:
            ahead.append(maths.importance(by_tail(riding, query, key, scaling, length, lse)))

    carried = Pass(observe=record if rows or riding else None)
    prefilled = read(model, ids, cache, riding, carried, seen, settings)
    if tail is not None and riding is None:
        ahead = look(prefilled, tail)
    return prefilled, ahead if tail is not None else None


@torch.no_grad()
def prefill_many(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[PromptRows] = (),
    seeds: Sequence[int] = (),
    **settings: Any,
) -> list[Prefilled]:
    """prefill of several prompts of any lengths in one pass: one Prefilled each, whose caches are views.

    Shorter prompts are padded behind, where causality hides it. Prompt rows must be there in each prompt.
    """
    require_observable(model)
    assert together(model), (
        "padding needs the block loop of lkv.model.forward, and rotations of single tokens"
    )
    device = model.device
    sizes = [len(prompt) for prompt in prompts]
    for size in sizes:
        check_room(model, size, settings)
    lengths, longest = torch.tensor(sizes, device=device), max(sizes)
    ids = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device)
    cache = prompt_cache(model.config)
    seen: dict[PromptRows, list[Tensor]] = {row: [] for row in rows}

    def record(layer: int, query: Tensor, key: Tensor, scaling: float, lse: Tensor | None) -> None:
        for row, importance in seen.items():
            importance.append(maths.importance(by_last_rows(row, query, key, scaling, lengths, lse)))

    positions = torch.arange(longest, device=device)[None]
    carried = Pass(observe=record if rows else None)
    out = states(model, model.get_input_embeddings()(ids), positions, cache, carried)
    ends = out[torch.arange(len(sizes), device=device), lengths - 1]
    firsts = first_tokens(model, ends, lengths - 1, seeds or [0] * len(sizes), **drawing_settings(settings))
    return [
        Prefilled(
            model,
            ids[b : b + 1, :size],
            _part(cache, b, size),
            firsts[b : b + 1],
            {row: [layer[b : b + 1, :, :size] for layer in layers] for row, layers in seen.items()},
            seed=seeds[b] if seeds else 0,
            **settings,
        )
        for b, size in enumerate(sizes)
    ]


def together(model: PreTrainedModel) -> bool:
    """Whether prompts of unequal lengths can be read in one pass."""
    return ours(model) and not length_dependent(model)


def prompts_at_once(model: PreTrainedModel, length: int) -> int:
    """How many prompts of a length are worth one prefill: on CUDA until it is busy, else one."""
    if model.device.type != "cuda" or not together(model):
        return 1
    return max(1, AT_ONCE // (length * model.config.hidden_size))


def _part(cache: Cache, b: int, size: int) -> Cache:
    """The first entries of one prompt of a batch, uncopied."""
    part = Cache(layers=[EvictableLayer() for _ in cache.layers])
    for i in range(len(cache.layers)):
        keys, values = entries(cache, i)
        part.update(keys[b : b + 1, :, :size], values[b : b + 1, :, :size], i)
    return part


def read(
    model: PreTrainedModel,
    ids: Tensor,
    cache: Cache,
    tail: Tail | None,
    carried: Pass,
    seen: dict[PromptRows, Importance],
    settings: dict[str, Any],
) -> Prefilled:
    """One pass over a prompt, and a tail that rides along, into an empty cache."""
    require_evictable(model)
    require_observable(model)
    length = ids.shape[1]
    check_room(model, length, settings)
    assert tail is None or rides_along(model), "a tail in the prefill needs full attention in every layer"
    hidden = model.get_input_embeddings()(ids)
    if tail is not None:
        hidden = torch.cat([hidden, embedded(model, tail)], 1)
    positions = torch.arange(hidden.shape[1], device=ids.device)[None]
    out = states(model, hidden, positions, cache, carried, tail.adapter if tail is not None else None)
    if tail is not None:
        for layer in cache.layers:
            assert isinstance(layer, EvictableLayer)
            if not layer.evicted:  # evicted layers have dropped the tail with all the rest
                layer.crop(length - layer.stored)
    last, seeds = positions[:, length - 1], row_seeds(settings.get("seed", 0), len(ids))
    first = first_tokens(model, out[:, length - 1], last, seeds, **drawing_settings(settings))
    return Prefilled(model, ids, cache, first, seen, **settings)


def look(prefilled: Prefilled, tail: Tail) -> Importance:
    """Importance that a tail sees, in a pass of its own over the finished cache, which it leaves unchanged.

    Differentiable in the tail's embeddings and in its adapter's parameters.
    """
    cache, model = prefilled.cache, prefilled.model
    before = [dict(vars(layer)) for layer in cache.layers]  # references: the pass makes new tensors
    evictable, importance = set(full_layers(cache)), []

    def record(layer: int, query: Tensor, key: Tensor, scaling: float, lse: Tensor | None) -> None:
        if layer in evictable:
            stored = key.shape[2] - query.shape[2]
            importance.append(maths.importance(by_tail(tail, query, key, scaling, stored, lse)))

    hidden = embedded(model, tail)
    if not hidden.requires_grad:
        hidden = hidden.clone()  # the pass may write over it
    try:
        states(model, hidden, _positions(tail, prefilled.length), cache, Pass(observe=record), tail.adapter)
    finally:
        for layer, state in zip(cache.layers, before, strict=True):
            vars(layer).update(state)
    return importance


def _positions(tail: Tail, length: int) -> Tensor:
    return torch.arange(length, length + tail.tokens.shape[1], device=tail.tokens.device)[None]
