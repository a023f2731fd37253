"""Eviction layer by layer while the prompt is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lkv.cache.evictable import EvictableLayer, check_held, full_layers, prompt_cache
from lkv.cache.rows import Row
from lkv.eviction.compact import compact
from lkv.eviction.decode import Clock, no_clock
from lkv.eviction.layer_budgets import layer_budgets
from lkv.eviction.pipeline import check_budgets, evicted
from lkv.eviction.prefill import read
from lkv.eviction.prefilled import Prefilled
from lkv.eviction.select import keep_layers
from lkv.eviction.single_pass import observed_scores, prefill_scored, riding_observers
from lkv.interface import Method, Tail
from lkv.model.attention import Pass


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
    observers = riding_observers(model, ids, method, clock, settings) if budget < length else None
    if method is None or observers is None:
        prefilled, scores = prefill_scored(model, ids, method, clock, **settings)
        return prefilled, evicted(prefilled, scores, method, budget, clock)
    cache = prompt_cache(model.config)
    evictable, scored = full_layers(cache), list[Tensor]()
    budgets = layer_budgets(method.recipe, budget, len(evictable), length)

    def record(layer: int, query: Tensor, key: Tensor, scaling: float, lse: Tensor | None) -> None:
        if layer in evictable:
            with clock("observe"):
                scored.append(observed_scores(observers, method.recipe, query, key, scaling, length, lse))

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
