"""Prefill: a prompt read once into a cache that every method and every budget is evicted from.

A batch of `prefill` holds prompts of one length; `prefill_many` reads prompts of any lengths, padded behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from lkv import kernels
from lkv import observe as maths
from lkv.attention import Pass, require_observable
from lkv.cache import EvictableLayer, Layers, Row, check_held, entries, full_layers, gather, prompt_cache
from lkv.decode import decode
from lkv.errors import UserError
from lkv.forward import logits, ours, states
from lkv.interface import Importance, PromptRows, Tail
from lkv.observe import Sight
from lkv.rope import context, length_dependent
from lkv.sampling import drawn
from lkv.select import Kept
from lkv.support import require_drawable, require_evictable

AT_ONCE = 1 << 26  # numbers in a prefill's hidden states: more keep a GPU no busier

Watch = Callable[[int, Tensor, Tensor, float, "Tensor | None"], None]


@dataclass(eq=False)
class Prefilled:
    """A prompt after its prefill: ids [B, N], the full cache, each row's first answer token, int64 [B].

    `seen` holds the importance that the prefill pass itself recorded. `answer_tokens` is how long the model's
    own answer may get (the oracle's observers), `seed` feeds what draws at random: methods, and answers at a
    `temperature` above 0. `banned` tokens cannot come first in an answer. `question` [B, n] is fed between
    this prompt and its answer, and is no part of what is evicted.

    After `extend` the cache stores fewer entries than the prompt has tokens; importance is over the stored.
    """

    model: PreTrainedModel
    ids: Tensor
    cache: Cache
    first: Tensor
    seen: dict[PromptRows, Importance]
    stop: frozenset[int] = frozenset()
    answer_tokens: int = 32
    seed: int = 0
    banned: frozenset[int] = frozenset()
    temperature: float = 0.0
    question: Tensor | None = None
    _answers: list[list[int]] | None = field(default=None, repr=False)

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    @property
    def full_layers(self) -> list[int]:
        """Layers that are evicted from."""
        return full_layers(self.cache)

    @property
    def kv_heads(self) -> int:
        return entries(self.cache, self.full_layers[0])[0].shape[1]

    def stored(self, layer: int) -> int:
        """Entries that a layer holds."""
        return entries(self.cache, layer)[0].shape[2]

    @property
    def answers(self) -> list[list[int]]:
        """The model's own answers from the full cache, without their stop token."""
        if self._answers is None:
            asked = self if self.question is None else extend(self, None, self.question)
            self._answers = decode(self.model, compact(asked, None), self.answer_tokens, self.stop).tokens
        return self._answers

    @answers.setter
    def answers(self, known: list[list[int]]) -> None:
        self._answers = known


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
    assert together(model), "padding needs the block loop of lkv.forward, and rotations of single tokens"
    device = model.device
    sizes = [len(prompt) for prompt in prompts]
    for size in sizes:
        _check_room(model, size, settings)
    lengths, longest = torch.tensor(sizes, device=device), max(sizes)
    ids = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device)
    cache = prompt_cache(model.config)
    seen: dict[PromptRows, list[Tensor]] = {row: [] for row in rows}

    def record(layer: int, query: Tensor, key: Tensor, scaling: float, lse: Tensor | None) -> None:
        for row, importance in seen.items():
            importance.append(maths.importance(_by_last_rows(row, query, key, scaling, lengths, lse)))

    positions = torch.arange(longest, device=device)[None]
    carried = Pass(observe=record if rows else None)
    out = states(model, model.get_input_embeddings()(ids), positions, cache, carried)
    ends = out[torch.arange(len(sizes), device=device), lengths - 1]
    firsts = _first(model, ends, lengths - 1, seeds or [0] * len(sizes), **_drawing(settings))
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
    seeds, drawing = _seeds(prefilled.seed, len(ids)), (prefilled.banned, prefilled.temperature)
    first = _first(model, out[:, -1], positions[:, -1], seeds, *drawing)
    whole = torch.cat([prefilled.ids, ids], 1)
    return replace(prefilled, ids=whole, cache=cache, first=first, seen=seen, question=None, _answers=None)


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
    _check_room(model, length, settings)
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
    last, seeds = positions[:, length - 1], _seeds(settings.get("seed", 0), len(ids))
    first = _first(model, out[:, length - 1], last, seeds, **_drawing(settings))
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


def _check_room(model: PreTrainedModel, length: int, settings: dict[str, Any]) -> None:
    limit = context(model.config)
    answer = settings.get("answer_tokens", Prefilled.answer_tokens)
    if limit is not None and length + answer > limit:
        raise UserError(
            f"the prompt has {length} tokens and its answer up to {answer}, {model.config.model_type}'s "
            f"context is {limit}; shorten the prompt or the answer, or use a model with a longer context"
        )


def _first(
    model: PreTrainedModel,
    last: Tensor,
    positions: Tensor,
    seeds: Sequence[int],
    banned: frozenset[int] = frozenset(),
    temperature: float = 0.0,
) -> Tensor:
    """First token of each row, int64 [B], from the final states [B, hidden] of its last token."""
    scored = logits(model, last)
    if banned:
        scored = scored.index_fill(-1, torch.tensor(sorted(banned), device=scored.device), float("-inf"))
    if temperature == 0:  # without the seeds' copy to the device, which a capture does not allow
        return scored.argmax(-1)
    require_drawable(model)
    return drawn(scored, temperature, torch.tensor(seeds, device=scored.device), positions)


def _drawing(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: settings[key] for key in ("banned", "temperature") if key in settings}


def _seeds(seed: int, rows: int) -> list[int]:
    """Of the rows of a batch, each its own."""
    return [seed + b for b in range(rows)]


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


def _by_last_rows(
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
