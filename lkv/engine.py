"""The one place with the order of steps: prefill → observe → select → compact → decode.

One prefill of a prompt serves every method and every budget; their decodes run as one batch of rows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lkv import observe as maths
from lkv import second
from lkv.attention import Pass
from lkv.cache import EvictableLayer, Row, check_held, entries, full_layers, prompt_cache
from lkv.decode import Clock, no_clock
from lkv.errors import UserError
from lkv.interface import Importance, Method, Observers, PromptRows, Ranking, Recipe, Recorded, Tail
from lkv.observe import Sight
from lkv.prefill import Prefilled, by_prompt_rows, by_tail, compact, look, prefill, read, rides_along
from lkv.select import candidate_scores, choose, keep_layers, layer_budgets, select


@torch.no_grad()
def prefill_scored(
    model: PreTrainedModel, ids: Tensor, method: Method | None, clock: Clock = no_clock, **settings: Any
) -> tuple[Prefilled, Sequence[Tensor] | None]:
    """prefill and observe for one method the fastest way (`evicted` does the rest for any budget).

    Observers that are rows of the pass itself are looked at as it goes, and a tail known ahead rides along
    (single pass): the scores of the entries that compete come second, [B, K, N'] a layer. None for other
    methods, whose observers come after the prefill, and where a second pass of the tail is faster.
    """
    observers = _riding(model, ids, method, clock, settings)
    if second.instead(model, observers, *ids.shape):
        observers = None
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
        return read(model, ids, cache, tail, Pass(observe=record), {}, settings), scores


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
    length = ids.shape[1]
    observers = _riding(model, ids, method, clock, settings) if budget < length else None
    if method is None or observers is None:
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
        prefilled = read(model, ids, cache, tail, carried, {}, settings)
    check_held([prefilled.stored(i) for i in evictable], [min(count, length) for count in budgets])
    return prefilled, compact(prefilled, None)


@torch.no_grad()
def score_errors(model: PreTrainedModel, ids: Tensor, method: Method, layers: Collection[int]) -> list[float]:
    """How far fused kernels' scores are from the reference's, relative, in some layers of a prefill.

    Compared are the method's own scores where its observers ride along, the importance where they look in a
    second pass, else that of the last 32 rows.
    """
    observers = _riding(model, ids, method, no_clock, {}) or PromptRows(last=32)
    if isinstance(observers, Tail) and second.instead(model, observers, *ids.shape):
        return second.errors(prefill(model, ids)[0], observers, layers)
    length, errors = ids.shape[1], list[float]()

    def compare(layer: int, query: Tensor, key: Tensor, scaling: float, lse: Tensor | None) -> None:
        if layer in layers:
            given = (observers, method.recipe, query, key, scaling, length)
            truth = _scores(*given, None, exact=True)
            errors.extend(
                float((_scores(*given, known) - truth).norm() / truth.norm()) for known in (lse, None)
            )

    tail = observers if isinstance(observers, Tail) else None
    read(model, ids, prompt_cache(model.config), tail, Pass(observe=compare), {}, {})
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
        sight = by_prompt_rows(observers, query, key, scaling, length, length, lse)
        return maths.scores(sight, recipe, exact)
    sight = by_tail(observers, query, key, scaling, length, lse)
    if observers.beside is None:
        return maths.scores(sight, recipe, exact)
    beside = by_prompt_rows(observers.beside, query, key, scaling, length, length, lse)
    mine, theirs = maths.importance(sight, exact), maths.importance(beside, exact)
    return candidate_scores(_together(observers, mine, theirs, length), recipe, key.shape[1])


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
        looking = second.look if second.looks_again(prefilled, observers) else look
        return _with_beside(prefilled, observers, looking(prefilled, observers))
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
    # `first` stays None: a draft's queries see every prompt key, however early in the draft they stand.
    return [
        maths.importance(
            Sight(
                observers.queries[i],
                entries(prefilled.cache, i)[0],
                observers.scalings[i],
                prefilled.stored(i),
                over=observers.over,
                valid=observers.valid,
            )
        )
        for i in full_layers(prefilled.cache)
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
