"""Prefill: a prompt read once into a cache that every method and every budget is evicted from.

A batch of `prefill` holds prompts of one length; `prefill_many` reads prompts of any lengths, padded behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from lkv.cache.evictable import EvictableLayer, entries, full_layers, prompt_cache
from lkv.eviction.importance import importance
from lkv.eviction.observation import allows_single_pass, embedded, last_row_inputs, recorder, tail_inputs
from lkv.eviction.prefilled import Prefilled, check_room, first_tokens
from lkv.interface import GREEDY, Answering, Attended, Importance, PromptRows, Tail
from lkv.model.architecture import ours
from lkv.model.attention import Pass, require_observable
from lkv.model.forward import states
from lkv.model.rope import length_dependent
from lkv.model.support import require_evictable

MOST_NUMBERS = 1 << 26  # in a prefill's hidden states: a larger batch keeps a GPU no busier


@torch.no_grad()
def prefill(
    model: PreTrainedModel,
    ids: Tensor,
    rows: Sequence[PromptRows] = (),
    tail: Tail | None = None,
    answering: Answering = GREEDY,
) -> tuple[Prefilled, Importance | None]:
    """Reads the prompt once. ids int64 [B, N].

    Records the importance that each of `rows` gives as the pass goes. With a `tail` its importance comes back
    second. The tail is part of the same pass (single pass) where that changes nothing of the prompt's own,
    and its keys are gone from the cache; else it observes in a pass of its own.
    """
    length = ids.shape[1]
    cache = prompt_cache(model.config)
    recorded: dict[PromptRows, Importance] = {row: [] for row in rows}
    by_tail: Importance = []
    record_rows = recorder(cache, recorded, length)
    riding = tail if allows_single_pass(model) else None

    def record(attended: Attended) -> None:
        record_rows(attended)
        if riding is not None:
            by_tail.append(importance(tail_inputs(riding, attended, length)))

    hooks = Pass(observe=record if rows or riding else None)
    prefilled = read(model, ids, cache, riding, hooks, answering)
    prefilled.recorded = recorded
    if tail is not None and riding is None:
        by_tail = observe_tail(prefilled, tail)
    return prefilled, by_tail if tail is not None else None


@torch.no_grad()
def prefill_many(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[PromptRows] = (),
    answering: Answering = GREEDY,
    seeds: Sequence[int] = (),
) -> list[Prefilled]:
    """prefill of several prompts of any lengths in one pass: one Prefilled each, whose caches are views.

    Shorter prompts are padded behind, where causality hides it. Prompt rows must be there in each prompt.
    Each prompt has its own of `seeds`, where they are given.
    """
    require_observable(model)
    assert reads_unequal_lengths(model), "padding needs the block loop, and rotations of single tokens"
    device = model.device
    sizes = [len(prompt) for prompt in prompts]
    for size in sizes:
        check_room(model, size, answering)
    lengths, longest = torch.tensor(sizes, device=device), max(sizes)
    ids = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device)
    cache = prompt_cache(model.config)
    recorded: dict[PromptRows, list[Tensor]] = {row: [] for row in rows}

    def record(attended: Attended) -> None:
        for row, of_row in recorded.items():
            of_row.append(importance(last_row_inputs(row, attended, lengths)))

    positions = torch.arange(longest, device=device)[None]
    hooks = Pass(observe=record if rows else None)
    out = states(model, model.get_input_embeddings()(ids), positions, cache, hooks)
    ends = out[torch.arange(len(sizes), device=device), lengths - 1]
    own = list(seeds) or [answering.seed] * len(sizes)
    first = first_tokens(model, ends, lengths - 1, answering, own)
    return [
        Prefilled(
            model,
            ids[b : b + 1, :size],
            _part(cache, b, size),
            first[b : b + 1],
            {row: [layer[b : b + 1, :, :size] for layer in layers] for row, layers in recorded.items()},
            replace(answering, seed=own[b]),
        )
        for b, size in enumerate(sizes)
    ]


def reads_unequal_lengths(model: PreTrainedModel) -> bool:
    """Whether prompts of unequal lengths can be read in one pass."""
    return ours(model) and not length_dependent(model)


def prompts_at_once(model: PreTrainedModel, length: int) -> int:
    """How many prompts of a length are worth one prefill: on CUDA until it is busy, else one."""
    if model.device.type != "cuda" or not reads_unequal_lengths(model):
        return 1
    return max(1, MOST_NUMBERS // (length * model.config.hidden_size))


def _part(cache: Cache, b: int, size: int) -> Cache:
    """The first entries of one prompt of a batch, uncopied."""
    part = Cache(layers=[EvictableLayer() for _ in cache.layers])
    for i in range(len(cache.layers)):
        keys, values = entries(cache, i)
        part.update(keys[b : b + 1, :, :size], values[b : b + 1, :, :size], i)
    return part


def read(
    model: PreTrainedModel, ids: Tensor, cache: Cache, tail: Tail | None, hooks: Pass, answering: Answering
) -> Prefilled:
    """One pass over a prompt, and over a tail that is part of it, into an empty cache."""
    require_evictable(model)
    require_observable(model)
    length = ids.shape[1]
    check_room(model, length, answering)
    assert tail is None or allows_single_pass(model), "a tail in the prefill needs full attention everywhere"
    hidden = model.get_input_embeddings()(ids)
    if tail is not None:
        hidden = torch.cat([hidden, embedded(model, tail)], 1)
    positions = torch.arange(hidden.shape[1], device=ids.device)[None]
    out = states(model, hidden, positions, cache, hooks, tail.adapter if tail is not None else None)
    if tail is not None:
        for layer in cache.layers:
            assert isinstance(layer, EvictableLayer)
            if not layer.evicted:  # evicted layers have dropped the tail with all the rest
                layer.crop(length - layer.stored)
    first = first_tokens(model, out[:, length - 1], positions[:, length - 1], answering)
    return Prefilled(model, ids, cache, first, {}, answering)


def observe_tail(prefilled: Prefilled, tail: Tail) -> Importance:
    """A tail's importance, in a pass of its own over the finished cache, which it leaves unchanged.

    Differentiable in the tail's embeddings and in its adapter's parameters.
    """
    cache, model = prefilled.cache, prefilled.model
    before = [dict(vars(layer)) for layer in cache.layers]  # references: the pass makes new tensors
    evictable, found = set(full_layers(cache)), list[Tensor]()

    def record(attended: Attended) -> None:
        if attended.layer in evictable:
            stored = attended.key.shape[2] - attended.query.shape[2]
            found.append(importance(tail_inputs(tail, attended, stored)))

    hidden = embedded(model, tail)
    if not hidden.requires_grad:
        hidden = hidden.clone()  # the pass may write over it
    end = prefilled.length + tail.tokens.shape[1]
    positions = torch.arange(prefilled.length, end, device=tail.tokens.device)[None]
    try:
        states(model, hidden, positions, cache, Pass(observe=record), tail.adapter)
    finally:
        for layer, state in zip(cache.layers, before, strict=True):
            vars(layer).update(state)
    return found
