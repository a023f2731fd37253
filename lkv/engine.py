"""The one place with the order of steps: prefill → observe → select → compact → decode.

One prefill of a prompt serves every method and every budget; their decodes run as one batch of rows.
Batches hold prompts of one length: nothing here is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from lkv import kernels
from lkv import observe as maths
from lkv.attention import Pass, require_observable
from lkv.cache import EvictableLayer, Row, entries, full_layers, gather, prompt_cache
from lkv.decode import Clock, decode, no_clock
from lkv.errors import UserError
from lkv.forward import ours, states
from lkv.interface import Importance, Method, Observers, PromptRows, Ranking, Recipe, Recorded, Tail
from lkv.observe import Sight
from lkv.select import Kept, candidate_scores, choose, keep_layers, layer_budgets, select

AT_ONCE = 1 << 26  # numbers in a prefill's hidden states: more keep a GPU no busier

Watch = Callable[[int, Tensor, Tensor, float, "Tensor | None"], None]


@dataclass(eq=False)
class Prefilled:
    """A prompt after its prefill: ids [B, N], the full cache, each row's first answer token, int64 [B].

    `seen` holds the importance that the prefill pass itself recorded. `answer_tokens` is how long the model's
    own answer may get (the oracle's observers), `seed` feeds methods that draw at random. `banned` tokens
    cannot come first in an answer. `question` [B, n] is fed between this prompt and its answer, and is no
    part of what is evicted.

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
    **settings: Any,
) -> tuple[Prefilled, Importance | None]:
    """Runs the prompt once. ids int64 [B, N].

    Records the importance that each of `rows` sees as the pass goes. With a `tail` it rides along in the
    same pass (single pass): its importance comes back second and its keys are gone from the cache.
    """
    length = ids.shape[1]
    cache = prompt_cache(model.config)
    seen: dict[PromptRows, Importance] = {row: [] for row in rows}
    ahead: Importance = []
    watch_rows = watcher(cache, seen, length)

    def record(layer: int, query: Tensor, key: Tensor, scaling: float, lse: Tensor | None) -> None:
        watch_rows(layer, query, key, scaling, lse)
        if tail is not None:
            ahead.append(maths.importance(_by_tail(tail, query, key, scaling, length, lse)))

    carried = Pass(observe=record if rows or tail else None)
    prefilled = _read(model, ids, cache, tail, carried, seen, settings)
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
    assert ours(model), "padding needs the block loop of lkv.forward"
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
    firsts = _first(model, out[torch.arange(len(sizes), device=device), lengths - 1], settings.get("banned"))
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


def prompts_at_once(model: PreTrainedModel, length: int) -> int:
    """How many prompts of a length are worth one prefill: on CUDA until it is busy, else one."""
    if model.device.type != "cuda" or not ours(model):
        return 1
    return max(1, AT_ONCE // (length * model.config.hidden_size))


def _part(cache: Cache, b: int, size: int) -> Cache:
    """The first entries of one prompt of a batch, uncopied."""
    part = Cache(layers=[EvictableLayer() for _ in cache.layers])
    for i in range(len(cache.layers)):
        keys, values = entries(cache, i)
        part.update(keys[b : b + 1, :, :size], values[b : b + 1, :, :size], i)
    return part


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


@torch.no_grad()
def prefill_scored(
    model: PreTrainedModel, ids: Tensor, method: Method | None, clock: Clock = no_clock, **settings: Any
) -> tuple[Prefilled, Sequence[Tensor] | None]:
    """prefill and observe for one method the fastest way (`evicted` does the rest for any budget).

    Observers that are rows of the pass itself are looked at as it goes, and a tail known ahead rides along
    (single pass): the scores of the entries that compete come second, [B, K, N'] a layer. None for other
    methods, whose observers come after the prefill.
    """
    observers = _riding(model, ids, method, clock, settings)
    if method is None or observers is None:
        with clock("prefill"):
            return prefill(model, ids, method.rows if method else (), **settings)[0], None
    cache = prompt_cache(model.config)
    evictable, scores = set(full_layers(cache)), list[Tensor]()

    def record(layer: int, query: Tensor, key: Tensor, scaling: float, lse: Tensor | None) -> None:
        if layer in evictable:
            with clock("observe"):
                scores.append(_scores(observers, method.recipe, query, key, scaling, ids.shape[1], lse))

    tail = observers if isinstance(observers, Tail) else None
    with clock("prefill"):
        return _read(model, ids, cache, tail, Pass(observe=record), {}, settings), scores


def evicted(
    prefilled: Prefilled,
    scores: Sequence[Tensor] | None,
    method: Method | None,
    budget: int,
    clock: Clock = no_clock,
) -> list[Row]:
    """select and compact after prefill_scored; for methods that it left unobserved, observe as well."""
    if method is None:
        return compact(prefilled, None)
    check_budgets(method, [budget])
    if scores is None:
        [importance] = observe(prefilled, method, [budget], clock)
        with clock("select"):
            kept = select(importance, method.recipe, budget, prefilled.kv_heads)
    else:
        with clock("select"):
            kept = choose(scores, method.recipe, budget, [prefilled.length] * len(scores))
    with clock("compact"):
        return compact(prefilled, kept)


@torch.no_grad()
def prefill_layerwise(
    model: PreTrainedModel,
    ids: Tensor,
    method: Method | None,
    budget: int,
    clock: Clock = no_clock,
    **settings: Any,
) -> tuple[Prefilled, list[Row]]:
    """Prefill that evicts a layer as soon as it has attended: no more than one layer is ever whole.

    The returned cache is the evicted one. Methods that must see the whole cache first (a draft decoded on it)
    are evicted after it.
    """
    if method is not None:
        check_budgets(method, [budget])
    observers = _riding(model, ids, method, clock, settings)
    length = ids.shape[1]
    if method is None or observers is None or budget >= length:
        prefilled, scores = prefill_scored(model, ids, method, clock, **settings)
        return prefilled, evicted(prefilled, scores, method, budget, clock)
    cache = prompt_cache(model.config)
    evictable, scored = full_layers(cache), list[Tensor]()
    budgets = layer_budgets(method.recipe, budget, len(evictable), length)

    def record(layer: int, query: Tensor, key: Tensor, scaling: float, lse: Tensor | None) -> None:
        if layer in evictable:
            with clock("observe"):
                scored.append(_scores(observers, method.recipe, query, key, scaling, length, lse))

    def evict_layer(layer: int) -> None:
        if layer in evictable:
            count = min(budgets[evictable.index(layer)], length)
            with clock("select"):
                [kept] = keep_layers([scored.pop()], method.recipe, [count])
            with clock("compact"):
                held = cache.layers[layer]
                assert isinstance(held, EvictableLayer)
                held.keep(kept)

    tail = observers if isinstance(observers, Tail) else None
    with clock("prefill"):
        carried = Pass(observe=record, finished=evict_layer)
        prefilled = _read(model, ids, cache, tail, carried, {}, settings)
    return prefilled, compact(prefilled, None)


@torch.no_grad()
def score_errors(model: PreTrainedModel, ids: Tensor, method: Method, layers: Collection[int]) -> list[float]:
    """How far fused kernels' scores are from the reference's, relative, in some layers of a prefill.

    Compared are the method's own scores where its observers ride along, else the last 32 rows' importance.
    """
    observers = _riding(model, ids, method, no_clock, {}) or PromptRows(last=32)
    length, errors = ids.shape[1], list[float]()

    def compare(layer: int, query: Tensor, key: Tensor, scaling: float, lse: Tensor | None) -> None:
        if layer in layers:
            given = (observers, method.recipe, query, key, scaling, length)
            truth = _scores(*given, None, exact=True)
            errors.extend(
                float((_scores(*given, known) - truth).norm() / truth.norm()) for known in (lse, None)
            )

    tail = observers if isinstance(observers, Tail) else None
    _read(model, ids, prompt_cache(model.config), tail, Pass(observe=compare), {}, {})
    return errors


def _riding(
    model: PreTrainedModel, ids: Tensor, method: Method | None, clock: Clock, settings: dict[str, Any]
) -> Tail | PromptRows | None:
    """The method's observers, where they are rows of the prefill pass itself."""
    if method is not None and isinstance(method.observers, PromptRows):
        return method.observers
    if method is not None and method.ahead is not None and rides_along(model):
        with clock("draft"):
            return method.ahead(model, ids, settings)
    return None


def _read(
    model: PreTrainedModel,
    ids: Tensor,
    cache: Cache,
    tail: Tail | None,
    carried: Pass,
    seen: dict[PromptRows, Importance],
    settings: dict[str, Any],
) -> Prefilled:
    """One pass over a prompt, and a tail that rides along, into an empty cache."""
    require_observable(model)
    length = ids.shape[1]
    _check_room(model, length, settings)
    assert tail is None or rides_along(model), "a tail in the prefill needs full attention in every layer"
    hidden = model.get_input_embeddings()(ids)
    if tail is not None:
        hidden = torch.cat([hidden, _embedded(model, tail)], 1)
    positions = torch.arange(hidden.shape[1], device=ids.device)[None]
    out = states(model, hidden, positions, cache, carried, tail.adapter if tail is not None else None)
    if tail is not None:
        for layer in cache.layers:
            assert isinstance(layer, EvictableLayer)
            if not layer.evicted:  # evicted layers have dropped the tail with all the rest
                layer.crop(length - layer.stored)
    first = _first(model, out[:, length - 1], settings.get("banned"))
    return Prefilled(model, ids, cache, first, seen, **settings)


def _check_room(model: PreTrainedModel, length: int, settings: dict[str, Any]) -> None:
    limit = getattr(model.config, "max_position_embeddings", None)
    answer = settings.get("answer_tokens", Prefilled.answer_tokens)
    if limit is not None and length + answer > limit:
        raise UserError(
            f"the prompt has {length} tokens and its answer up to {answer}, {model.config.model_type}'s "
            f"context is {limit}; shorten the prompt or the answer, or use a model with a longer context"
        )


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
    first = _first(model, out[:, -1], prefilled.banned)
    whole = torch.cat([prefilled.ids, ids], 1)
    return replace(prefilled, ids=whole, cache=cache, first=first, seen=seen, question=None, _answers=None)


def rides_along(model: PreTrainedModel) -> bool:
    """Whether a tail can share the prefill: not with sliding layers, where it would push entries out."""
    cache = prompt_cache(model.config)
    return len(full_layers(cache)) == len(cache.layers)


def watcher(cache: Cache, seen: dict[PromptRows, Importance], fed: int) -> Watch:
    """A `Pass.observe` that fills `seen`, layer by layer, with what rows of the `fed` prompt tokens see."""
    evictable = set(full_layers(cache))

    def record(layer: int, query: Tensor, key: Tensor, scaling: float, lse: Tensor | None) -> None:
        if layer not in evictable:
            return
        stored = key.shape[2] - query.shape[2] + fed
        for row, importance in seen.items():
            sight = _by_prompt_rows(row, query, key, scaling, stored, fed, lse)
            importance.append(maths.importance(sight))

    return record


def _by_prompt_rows(
    row: PromptRows, query: Tensor, key: Tensor, scaling: float, stored: int, fed: int, lse: Tensor | None
) -> Sight:
    """What rows of the `fed` prompt tokens see, which are the first of `query` and the last of `stored`."""
    last = fed if row.last is None else min(row.last, fed)
    rows = slice(fed - last, fed)
    known = None if lse is None else lse[:, :, rows]
    return Sight(query[:, :, rows], key[:, :, :stored], scaling, stored, stored - last, row.over, lse=known)


def _by_tail(
    tail: Tail, query: Tensor, key: Tensor, scaling: float, stored: int, lse: Tensor | None
) -> Sight:
    """What a tail sees of `stored` entries; its rows are the last of a pass."""
    rows = query[:, :, -tail.rows :]
    known = None if lse is None else lse[:, :, -tail.rows :]
    return Sight(rows, key, scaling, stored, stored, tail.over, tail.valid, known)


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
            importance.append(maths.importance(_by_tail(tail, query, key, scaling, stored, lse)))

    hidden = _embedded(model, tail)
    if not hidden.requires_grad:
        hidden = hidden.clone()  # the pass may write over it
    try:
        states(model, hidden, _positions(tail, prefilled.length), cache, Pass(observe=record), tail.adapter)
    finally:
        for layer, state in zip(cache.layers, before, strict=True):
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
        return _with_beside(prefilled, observers, look(prefilled, observers))
    if isinstance(observers, Recorded):
        return _with_beside(prefilled, observers, _recorded(prefilled, observers))
    assert isinstance(observers, Ranking)
    heads = prefilled.model.config.get_text_config().num_attention_heads
    batch = prefilled.ids.shape[0]
    return [
        observers.rank(batch, heads, prefilled.stored(layer), layer, prefilled.seed, prefilled.ids.device)
        for layer in full_layers(prefilled.cache)
    ]


def _recorded(prefilled: Prefilled, observers: Recorded) -> Importance:
    layers = full_layers(prefilled.cache)
    attention = prefilled.model.base_model.get_submodule(f"layers.{layers[0]}.self_attn")
    # `first` stays None: a draft's queries see every prompt key, however early in the draft they stand.
    return [
        maths.importance(
            Sight(
                observers.queries[i],
                entries(prefilled.cache, i)[0],
                float(attention.scaling),  # type: ignore[arg-type]
                prefilled.stored(i),
                over=observers.over,
                valid=observers.valid,
            )
        )
        for i in layers
    ]


def _with_beside(prefilled: Prefilled, observers: Tail | Recorded, importance: Importance) -> Importance:
    """What the observers saw, put together with what the prompt rows `beside` them saw."""
    if observers.beside is None:
        return importance
    pairs = zip(importance, prefilled.seen[observers.beside], strict=True)
    return [_together(observers, mine, theirs, prefilled.length) for mine, theirs in pairs]


def _together(observers: Tail | Recorded, mine: Tensor, theirs: Tensor, length: int) -> Tensor:
    """One importance [B, H, N] from the observers' own and that of the prompt rows beside them."""
    assert observers.beside is not None and observers.over == observers.beside.over, "one reduction over all"
    if observers.over == "max":
        return torch.maximum(mine, theirs)
    beside = min(observers.beside.last or length, length)
    counted = mine.new_full((mine.shape[0],), observers.rows)
    if observers.valid is not None:
        counted = observers.valid.sum(1)
    share = (counted / (counted + beside))[:, None, None]
    return share * mine + (1 - share) * theirs


def answer_tail(prefilled: Prefilled) -> Tail:
    """The model's own answer placed after the prompt: the observers of the oracle and of the target."""
    answers = prefilled.answers
    if not all(answers):  # reading the first tokens waits for the device
        firsts = prefilled.first.tolist()
        answers = [answer or [first] for answer, first in zip(answers, firsts, strict=True)]
    tail = tail_of(answers, prefilled.ids.device)
    if prefilled.question is None:
        return tail
    # Read in between, and not an observer itself.
    unseen = torch.zeros_like(prefilled.question, dtype=torch.bool)
    tokens = torch.cat([prefilled.question, tail.tokens], 1)
    return Tail(tokens, valid=torch.cat([unseen, tail.valid], 1))  # type: ignore[list-item]


def tail_of(texts: Sequence[Sequence[int]], device: torch.device) -> Tail:
    """Token ids, one list a prompt, placed after the prompts; shorter ones are padded."""
    longest = max(1, *map(len, texts))
    tokens = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=device)
    written = torch.tensor([len(text) for text in texts], device=device)
    return Tail(tokens, valid=torch.arange(longest, device=device) < written[:, None])


@torch.no_grad()
def compact(prefilled: Prefilled, kept: Kept | None) -> list[Row]:
    """Copies the kept entries (None: all, uncopied) out of the cache: one Row a prompt of the batch."""
    cache = prefilled.cache
    held = [entries(cache, layer) for layer in range(len(cache.layers))]
    keys, values = [k for k, _ in held], [v for _, v in held]
    rows = range(len(prefilled.first))
    if kept is not None and len(kept) == len(held) and kernels.usable(keys[0]):
        return [_compact_fused(prefilled, kept, [*keys, *values], b) for b in rows]
    if kept is not None:
        for i, index in zip(full_layers(cache), kept, strict=True):
            keys[i], values[i] = gather(keys[i], index), gather(values[i], index)
    return [
        Row([k[b] for k in keys], [v[b] for v in values], prefilled.length, prefilled.first[b]) for b in rows
    ]


def _compact_fused(prefilled: Prefilled, kept: Kept, tensors: Sequence[Tensor], b: int) -> Row:
    from lkv.kernels.gather import gather as fused

    keys, values = fused([tensor[b] for tensor in tensors], kept.indices[:, b])
    if not kept.uniform:
        cut = [(k[:, :n], v[:, :n]) for k, v, n in zip(keys, values, kept.counts, strict=True)]
        return Row([k for k, _ in cut], [v for _, v in cut], prefilled.length, prefilled.first[b])
    return Row(keys, values, prefilled.length, prefilled.first[b])


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


def _scores(
    observers: Tail | PromptRows,
    recipe: Recipe,
    query: Tensor,
    key: Tensor,
    scaling: float,
    length: int,
    lse: Tensor | None,
    exact: bool = False,
) -> Tensor:
    """Candidates' scores by rows of the prefill itself; a tail's follow the prompt's."""
    if isinstance(observers, PromptRows):
        sight = _by_prompt_rows(observers, query, key, scaling, length, length, lse)
        return maths.scores(sight, recipe, exact)
    sight = _by_tail(observers, query, key, scaling, length, lse)
    if observers.beside is None:
        return maths.scores(sight, recipe, exact)
    beside = _by_prompt_rows(observers.beside, query, key, scaling, length, length, lse)
    mine, theirs = maths.importance(sight, exact), maths.importance(beside, exact)
    return candidate_scores(_together(observers, mine, theirs, length), recipe, key.shape[1])


def _first(model: PreTrainedModel, last: Tensor, banned: frozenset[int] | None) -> Tensor:
    """Greedy first token of each row, int64 [B], from the final states [B, hidden] of its last token."""
    logits: Tensor = model.get_output_embeddings()(last)
    if banned:
        logits = logits.index_fill(-1, torch.tensor(sorted(banned), device=logits.device), float("-inf"))
    return logits.argmax(-1)


def _embedded(model: PreTrainedModel, tail: Tail) -> Tensor:
    if tail.tokens.is_floating_point():
        return tail.tokens.to(model.dtype)
    return model.get_input_embeddings()(tail.tokens)


def _positions(tail: Tail, length: int) -> Tensor:
    return torch.arange(length, length + tail.tokens.shape[1], device=tail.tokens.device)[None]
