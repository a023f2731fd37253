"""Eviction layer by layer while the prompt is read: no more than one layer is ever whole."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lkv.cache.evictable import check_held, full_layers, prompt_cache
from lkv.cache.rows import Row
from lkv.eviction.compact import compact, compact_layer
from lkv.eviction.decode import Clock, no_clock
from lkv.eviction.layer_budgets import layer_budgets
from lkv.eviction.pipeline import check_budgets, evict_to
from lkv.eviction.prefill import read
from lkv.eviction.prefilled import Prefilled
from lkv.eviction.select import keep_layers
from lkv.eviction.single_pass import observed_scores, prefill_for, rows_of_the_pass
from lkv.interface import GREEDY, Answering, Attended, Method, Tail
from lkv.model.attention import Pass


@torch.no_grad()
def prefill_layerwise(
    model: PreTrainedModel,
    ids: Tensor,
    method: Method | None,
    budget: int,
    answering: Answering = GREEDY,
    clock: Clock = no_clock,
) -> tuple[Prefilled, list[Row]]:
    """Prefill that evicts a layer as soon as it has attended; the returned cache is the evicted one.

    Methods that must see the whole cache first (a draft decoded on it) are evicted after it.
    """
    if method is not None:
        check_budgets(method, [budget])
    length = ids.shape[1]
    observers = rows_of_the_pass(model, ids, method, answering, clock) if budget < length else None
    if method is None or observers is None:
        prefilled = prefill_for(model, ids, method, answering, clock)
        return prefilled, evict_to(prefilled, method, budget, clock)
    cache = prompt_cache(model.config)
    evictable, scored = full_layers(cache), list[Tensor]()
    budgets = layer_budgets(method.recipe, budget, len(evictable), length)
    counts = {i: min(count, length) for i, count in zip(evictable, budgets, strict=True)}

    def record(attended: Attended) -> None:
        if attended.layer in counts:
            with clock("observe"):
                scored.append(observed_scores(observers, method, attended, length))

    def evict_layer(layer: int) -> None:
        if layer in counts:
            with clock("select"):
                [index] = keep_layers([scored.pop()], method.recipe, [counts[layer]])
            with clock("compact"):
                compact_layer(cache, layer, index)

    tail = observers if isinstance(observers, Tail) else None
    with clock("prefill"):
        hooks = Pass(observe=record, finished=evict_layer)
        prefilled = read(model, ids, cache, tail, hooks, answering)
    check_held([prefilled.stored(i) for i in evictable], list(counts.values()))
    return prefilled, compact(prefilled, None)
