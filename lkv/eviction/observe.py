"""observe: what a method's observers give as importance, and the tails they are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lkv.cache.evictable import entries, full_layers
from lkv.eviction import importance as maths
from lkv.eviction import second_pass as second
from lkv.eviction.decode import Clock, no_clock
from lkv.eviction.importance import Sight
from lkv.eviction.prefill import look
from lkv.eviction.prefilled import Prefilled
from lkv.interface import Importance, Method, Observers, PromptRows, Ranking, Recorded, Tail


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
    return [combined(observers, mine, theirs, prefilled.length) for mine, theirs in pairs]


def combined(observers: Tail | Recorded, mine: Tensor, theirs: Tensor, length: int) -> Tensor:
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
