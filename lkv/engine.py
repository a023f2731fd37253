"""The one place with the order of steps: prefill → observe → select → compact → decode.

One prefill of a prompt serves every method and every budget; their decodes run as one batch of rows.
Batches hold prompts of one length: nothing here is padded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from lkv import observe as maths
from lkv.attention import BACKEND_NAMES, Pass
from lkv.cache import EvictableLayer, Row, RowsCache, entries, full_layers, gather, prompt_cache, windows
from lkv.errors import UserError
from lkv.interface import Importance, Method, Observers, PromptRows, Ranking, Recorded, Tail
from lkv.select import select

log = logging.getLogger("lkv")

Clock = Callable[[str], AbstractContextManager[None]]


def no_clock(_: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(eq=False)
class Prefilled:
    """A prompt after its prefill: ids [B, N], the full cache, and the first answer token of each row.

    `seen` holds the importance that the prefill pass itself recorded. `answer_tokens` is how long the model's
    own answer may get (the oracle's observers), `seed` feeds methods that draw at random. `banned` tokens
    cannot come first in an answer. `question` [B, n] is fed between this prompt and its answer, and is no
    part of what is evicted.

    After `extend` the cache stores fewer entries than the prompt has tokens; importance is over the stored.
    """

    model: PreTrainedModel
    ids: Tensor
    cache: Cache
    first: list[int]
    seen: dict[PromptRows, Importance]
    stop: frozenset[int] = frozenset()
    answer_tokens: int = 32
    seed: int = 0
    banned: frozenset[int] = frozenset()
    question: Tensor | None = None
    _answers: list[list[int]] | None = field(default=None, repr=False)

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    @property
    def kv_heads(self) -> int:
        return entries(self.cache, full_layers(self.cache)[0])[0].shape[1]

    def stored(self, layer: int) -> int:
        """Entries that a layer holds."""
        return entries(self.cache, layer)[0].shape[2]

    @property
    def answers(self) -> list[list[int]]:
        """The model's own greedy answers from the full cache, without their stop token."""
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
    clock: Clock = no_clock,
    **settings: Any,
) -> tuple[Prefilled, Importance | None]:
    """Runs the prompt once. ids int64 [B, N].

    Records the importance that each of `rows` sees as the pass goes. With a `tail` it rides along in the
    same pass (single pass): its importance comes back second and its keys are gone from the cache.
    """
    require_observable(model)
    length = ids.shape[1]
    limit = getattr(model.config, "max_position_embeddings", None)
    answer = settings.get("answer_tokens", Prefilled.answer_tokens)
    if limit is not None and length + answer > limit:
        raise UserError(
            f"the prompt has {length} tokens and its answer up to {answer}, {model.config.model_type}'s "
            f"context is {limit}; shorten the prompt or the answer, or use a model with a longer context"
        )
    cache = prompt_cache(model.config)
    assert tail is None or rides_along(model), "a tail in the prefill needs full attention in every layer"
    seen: dict[PromptRows, Importance] = {row: [] for row in rows}
    ahead: Importance = []
    watch_rows = watcher(cache, seen, length)

    def record(layer: int, query: Tensor, key: Tensor, scaling: float) -> None:
        with clock("observe"):
            watch_rows(layer, query, key, scaling)
            if tail is not None:
                queries = query[:, :, length:]
                ahead.append(_tail_importance(tail, queries, key, scaling, length))

    with clock("prefill"), _active(tail):
        if tail is None:
            inputs = {"input_ids": ids}
        else:
            embed = model.get_input_embeddings()
            inputs = {"inputs_embeds": torch.cat([embed(ids), _embedded(model, tail)], 1)}
        out = model(
            **inputs,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=torch.tensor([length - 1], device=ids.device),
            lkv_pass=Pass(observe=record) if rows or tail else None,
        )
        first = _first(out.logits[:, -1], settings.get("banned"))
    if tail is not None:
        cache.crop(length - cache.get_seq_length())
    prefilled = Prefilled(model, ids, cache, first, seen, **settings)
    return prefilled, ahead if tail is not None else None


@torch.no_grad()
def extend(
    prefilled: Prefilled, kept: Sequence[Tensor] | None, ids: Tensor, rows: Sequence[PromptRows] = ()
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
    out = model(
        input_ids=ids,
        position_ids=torch.arange(before, before + new, device=ids.device)[None],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        lkv_pass=Pass(observe=watcher(cache, seen, new)) if rows else None,
    )
    first = _first(out.logits[:, -1], prefilled.banned)
    whole = torch.cat([prefilled.ids, ids], 1)
    return replace(prefilled, ids=whole, cache=cache, first=first, seen=seen, question=None, _answers=None)


def prefill_observed(
    model: PreTrainedModel,
    ids: Tensor,
    method: Method | None,
    budget: int,
    clock: Clock = no_clock,
    **settings: Any,
) -> tuple[Prefilled, Importance | None]:
    """prefill and observe for one method the fastest way: a tail known ahead rides along (single pass).

    Returns the importance too; None without a method (the full cache).
    """
    if method is None:
        return prefill(model, ids, clock=clock, **settings)
    if method.ahead is not None and rides_along(model):
        return prefill(model, ids, tail=method.ahead(model, ids.shape[0]), clock=clock, **settings)
    prefilled, _ = prefill(model, ids, method.rows, clock=clock, **settings)
    return prefilled, observe(prefilled, method, [budget], clock)[0]


def rides_along(model: PreTrainedModel) -> bool:
    """Whether a tail can share the prefill: not with sliding layers, where it would push entries out."""
    cache = prompt_cache(model.config)
    return len(full_layers(cache)) == len(cache.layers)


def watcher(
    cache: Cache, seen: dict[PromptRows, Importance], fed: int
) -> Callable[[int, Tensor, Tensor, float], None]:
    """A `Pass.observe` that fills `seen`, layer by layer, with what rows of the `fed` prompt tokens see."""
    evictable = set(full_layers(cache))

    def record(layer: int, query: Tensor, key: Tensor, scaling: float) -> None:
        if layer not in evictable:
            return
        stored = key.shape[2] - query.shape[2] + fed
        keys = key[:, :, :stored]
        for row, importance in seen.items():
            last = fed if row.last is None else min(row.last, fed)
            queries = query[:, :, fed - last : fed]
            seen_by = maths.importance(queries, keys, scaling, stored, stored - last, over=row.over)
            importance.append(seen_by)

    return record


def look(prefilled: Prefilled, tail: Tail) -> Importance:
    """Importance that a tail sees, in a pass of its own over the finished cache, which it leaves unchanged.

    Differentiable in the tail's embeddings and whatever `tail.active` switches on.
    """
    cache, model = prefilled.cache, prefilled.model
    kept = [dict(vars(layer)) for layer in cache.layers]  # references: the pass concatenates into new tensors
    evictable, importance = set(full_layers(cache)), []

    def record(layer: int, query: Tensor, key: Tensor, scaling: float) -> None:
        if layer in evictable:
            stored = key.shape[2] - query.shape[2]
            importance.append(_tail_importance(tail, query, key, scaling, stored))

    try:
        with _active(tail):
            model.base_model(
                inputs_embeds=_embedded(model, tail),
                position_ids=_positions(tail, prefilled.length),
                past_key_values=cache,
                use_cache=True,
                lkv_pass=Pass(observe=record),
            )
    finally:
        for layer, state in zip(cache.layers, kept, strict=True):
            vars(layer).update(state)
    return importance


def observe(
    prefilled: Prefilled, method: Method, budgets: Sequence[int], clock: Clock = no_clock
) -> list[Importance]:
    """What the method's observers see, one answer a budget; equal observers look once."""
    observers = method.observers
    with clock("draft"):  # where observers come from: a draft for some, next to nothing for most
        answers = observers(prefilled, budgets) if callable(observers) else [observers] * len(budgets)
    done: dict[int, Importance] = {}
    with clock("observe"):
        for answer in answers:
            if id(answer) not in done:
                done[id(answer)] = _importance(prefilled, answer)
    return [done[id(answer)] for answer in answers]


@torch.no_grad()
def _importance(prefilled: Prefilled, observers: Observers) -> Importance:
    if isinstance(observers, PromptRows):
        return prefilled.seen[observers]
    if isinstance(observers, Tail):
        return _with_beside(prefilled, observers, look(prefilled, observers), observers.tokens.shape[1])
    if isinstance(observers, Recorded):
        rows = observers.queries[0].shape[2]
        return _with_beside(prefilled, observers, _recorded(prefilled, observers), rows)
    assert isinstance(observers, Ranking)
    heads = prefilled.model.config.get_text_config().num_attention_heads
    batch = prefilled.ids.shape[0]
    return [
        observers.rank(batch, heads, prefilled.stored(layer), layer, prefilled.seed).to(prefilled.ids.device)
        for layer in full_layers(prefilled.cache)
    ]


def _recorded(prefilled: Prefilled, observers: Recorded) -> Importance:
    layers = full_layers(prefilled.cache)
    attention = prefilled.model.base_model.get_submodule(f"layers.{layers[0]}.self_attn")
    # `first` stays None: a draft's queries see every prompt key, however early in the draft they stand.
    return [
        maths.importance(
            observers.queries[i],
            entries(prefilled.cache, i)[0],
            float(attention.scaling),  # type: ignore[arg-type]
            prefilled.stored(i),
            over=observers.over,
            valid=observers.valid,
        )
        for i in layers
    ]


def _with_beside(
    prefilled: Prefilled, observers: Tail | Recorded, importance: Importance, rows: int
) -> Importance:
    """What the observers' `rows` saw, put together with what the prompt rows `beside` them saw."""
    if observers.beside is None:
        return importance
    assert observers.over == observers.beside.over, "one reduction over all observers"
    pairs = list(zip(importance, prefilled.seen[observers.beside], strict=True))
    if observers.over == "max":
        return [torch.maximum(mine, theirs) for mine, theirs in pairs]
    beside = min(observers.beside.last or prefilled.length, prefilled.length)
    counted = pairs[0][0].new_full((pairs[0][0].shape[0],), rows)
    if observers.valid is not None:
        counted = observers.valid.sum(1)
    share = (counted / (counted + beside))[:, None, None]
    return [share * mine + (1 - share) * theirs for mine, theirs in pairs]


def answer_tail(prefilled: Prefilled) -> Tail:
    """The model's own answer placed after the prompt: the observers of the oracle and of the target."""
    answers = [answer or [first] for answer, first in zip(prefilled.answers, prefilled.first, strict=True)]
    longest = max(map(len, answers))
    device = prefilled.ids.device
    tokens = torch.tensor([a + [0] * (longest - len(a)) for a in answers], device=device)
    written = torch.tensor([len(a) for a in answers], device=device)
    valid = torch.arange(longest, device=device) < written[:, None]
    if prefilled.question is not None:  # read in between, and not an observer itself
        tokens = torch.cat([prefilled.question, tokens], 1)
        valid = torch.cat([torch.zeros_like(prefilled.question, dtype=torch.bool), valid], 1)
    return Tail(tokens, valid=valid)


@torch.no_grad()
def compact(prefilled: Prefilled, kept: Sequence[Tensor] | None) -> list[Row]:
    """Copies the kept entries (None: all) out of the full cache: one Row a prompt of the batch."""
    held = [entries(prefilled.cache, layer) for layer in range(len(prefilled.cache.layers))]
    keys, values = [k for k, _ in held], [v for _, v in held]
    if kept is not None:
        for i, index in zip(full_layers(prefilled.cache), kept, strict=True):
            keys[i], values[i] = gather(keys[i], index), gather(values[i], index)
    return [
        Row([k[b] for k in keys], [v[b] for v in values], prefilled.length, prefilled.first[b])
        for b in range(len(prefilled.first))
    ]


def evict(prefilled: Prefilled, method: Method, budgets: Sequence[int]) -> list[list[Row]]:
    """observe → select → compact for several budgets of one method."""
    check_budgets(method, budgets)
    return [
        compact(prefilled, select(importance, method.recipe, budget, prefilled.kv_heads))
        for importance, budget in zip(observe(prefilled, method, budgets), budgets, strict=True)
    ]


def check_budgets(method: Method, budgets: Sequence[int]) -> None:
    for budget in budgets:
        if budget < method.smallest_budget:
            keeps = f"always keeps {method.recipe.window} recent tokens and {method.recipe.sinks} sinks"
            works = f"works on a cache of {method.least_budget} or more"
            reason = keeps if method.smallest_budget > method.least_budget else works
            raise UserError(
                f"budget {budget} is too small for {method.name}, which {reason}; "
                f"give {method.smallest_budget} or more"
            )


@dataclass
class Decoded:
    """Greedy tokens of each row without the stop token; queries [R, H, T, D] a layer where recorded."""

    tokens: list[list[int]]
    queries: list[Tensor]
    steps: int


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    rows: Sequence[Row],
    new_tokens: int,
    stop: frozenset[int] = frozenset(),
    record: bool = False,
    clock: Clock = no_clock,
) -> Decoded:
    """Greedy decoding of all rows as one batch, each from its own kept entries and position.

    `record` also feeds each row's last token, so that every draft token leaves a query.
    """
    require_observable(model)
    device = model.device
    fed = new_tokens if record else new_tokens - 1
    cache = RowsCache(rows, max(fed, 1), windows(prompt_cache(model.config)))
    token = torch.tensor([[row.token] for row in rows], device=device)
    position = torch.tensor([[row.position] for row in rows], device=device)
    stops = torch.tensor(sorted(stop), dtype=torch.long, device=device)
    done = torch.isin(token, stops)
    drawn, queries = [token], [[] for _ in cache.rows_layers]  # type: ignore[var-annotated]

    def remember(layer: int, query: Tensor, key: Tensor, scaling: float) -> None:
        queries[layer].append(query)

    for _ in range(fed):
        if bool(done.all()) and not (record and len(drawn) == 1):
            break
        with clock("decode_token"):
            masks = cache.advance()
            out = model(
                input_ids=token,
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
                lkv_pass=Pass(observe=remember if record else None, masks=masks),
            )
            token = out.logits[:, -1:].argmax(-1)
        drawn.append(token)
        done |= torch.isin(token, stops)
        position = position + 1
    table = torch.cat(drawn, 1)[:, :new_tokens].tolist()
    tokens = [_until(row, stop) for row in table]
    return Decoded(
        tokens, [torch.cat(q, 2) for q in queries] if record and queries[0] else [], len(drawn) - 1
    )


def decode_all(
    model: PreTrainedModel, rows: Sequence[Row], new_tokens: int, stop: frozenset[int], at_once: int
) -> list[list[int]]:
    """Decodes rows in batches of at most `at_once`; halves the batch when CUDA runs out of memory."""
    tokens: list[list[int]] = []
    while len(tokens) < len(rows):
        try:
            batch = rows[len(tokens) : len(tokens) + at_once]
            tokens += decode(model, batch, new_tokens, stop).tokens
        except torch.OutOfMemoryError:
            if at_once == 1:
                raise UserError(
                    "CUDA ran out of memory while decoding a single row; use a GPU with more memory, "
                    "a smaller model or a shorter length"
                ) from None
            at_once = max(1, min(at_once, len(rows)) // 2)
            log.warning("out of memory: decoding %d rows at once from here on", at_once)
            torch.cuda.empty_cache()
    return tokens


def _until(tokens: list[int], stop: frozenset[int]) -> list[int]:
    for i, token in enumerate(tokens):
        if token in stop:
            return tokens[:i]
    return tokens


def require_observable(model: PreTrainedModel) -> None:
    """Under another attention function the observers would silently see nothing."""
    if model.config._attn_implementation not in BACKEND_NAMES:
        raise UserError(
            f"the model attends through {model.config._attn_implementation!r}, where observers see nothing; "
            "load it with lkv.models.load, or work inside `with lkv.attention.observable(model):`"
        )


def _tail_importance(tail: Tail, queries: Tensor, keys: Tensor, scaling: float, stored: int) -> Tensor:
    return maths.importance(queries, keys, scaling, stored, stored, over=tail.over, valid=tail.valid)


def _first(logits: Tensor, banned: frozenset[int] | None) -> list[int]:
    """Greedy first token of each row: logits [B, vocabulary]."""
    if banned:
        logits = logits.index_fill(-1, torch.tensor(sorted(banned), device=logits.device), float("-inf"))
    return [int(token) for token in logits.argmax(-1)]


def _embedded(model: PreTrainedModel, tail: Tail) -> Tensor:
    if tail.tokens.is_floating_point():
        return tail.tokens.to(model.dtype)
    return model.get_input_embeddings()(tail.tokens)


def _positions(tail: Tail, length: int) -> Tensor:
    return torch.arange(length, length + tail.tokens.shape[1], device=tail.tokens.device)[None]


@contextmanager
def _active(tail: Tail | None) -> Iterator[None]:
    with tail.active() if tail is not None and tail.active is not None else nullcontext():
        yield
