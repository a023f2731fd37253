"""Observers that ride along in the prefill's own pass."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lkv.cache.evictable import full_layers, prompt_cache
from lkv.eviction import importance as maths
from lkv.eviction import second_pass as second
from lkv.eviction.decode import Clock, no_clock
from lkv.eviction.observation import by_prompt_rows, by_tail, rides_along
from lkv.eviction.observe import combined
from lkv.eviction.prefill import prefill, read
from lkv.eviction.prefilled import Prefilled
from lkv.eviction.select import candidate_scores
from lkv.interface import Method, PromptRows, Recipe, Tail
from lkv.model.attention import Pass


@torch.no_grad()
def prefill_scored(
    model: PreTrainedModel, ids: Tensor, method: Method | None, clock: Clock = no_clock, **settings: Any
) -> tuple[Prefilled, Sequence[Tensor] | None]:
    """prefill and observe for one method the fastest way (`evicted` does the rest for any budget).

    Observers that are rows of the pass itself are looked at as it goes, and a tail known ahead rides along
    (single pass): the scores of the entries that compete come second, [B, K, N'] a layer. None for other
    methods, whose observers come after the prefill, and where a second pass of the tail is faster.
    """
    observers = riding_observers(model, ids, method, clock, settings)
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
                scores.append(
                    observed_scores(observers, method.recipe, query, key, scaling, ids.shape[1], lse)
                )

    tail = observers if isinstance(observers, Tail) else None
    with clock("prefill"):
        return read(model, ids, cache, tail, Pass(observe=record), {}, settings), scores


@torch.no_grad()
def score_errors(model: PreTrainedModel, ids: Tensor, method: Method, layers: Collection[int]) -> list[float]:
    """How far fused kernels' scores are from the reference's, relative, in some layers of a prefill.

    Compared are the method's own scores where its observers ride along, the importance where they look in a
    second pass, else that of the last 32 rows.
    """
    observers = riding_observers(model, ids, method, no_clock, {}) or PromptRows(last=32)
    if isinstance(observers, Tail) and second.instead(model, observers, *ids.shape):
        return second.errors(prefill(model, ids)[0], observers, layers)
    length, errors = ids.shape[1], list[float]()

    def compare(layer: int, query: Tensor, key: Tensor, scaling: float, lse: Tensor | None) -> None:
        if layer in layers:
            given = (observers, method.recipe, query, key, scaling, length)
            truth = observed_scores(*given, None, exact=True)
            errors.extend(
                float((observed_scores(*given, known) - truth).norm() / truth.norm()) for known in (lse, None)
            )

    tail = observers if isinstance(observers, Tail) else None
    read(model, ids, prompt_cache(model.config), tail, Pass(observe=compare), {}, {})
    return errors


def riding_observers(
    model: PreTrainedModel, ids: Tensor, method: Method | None, clock: Clock, settings: dict[str, Any]
) -> Tail | PromptRows | None:
    """The method's observers, where they are rows of the prefill pass itself."""
    if method is not None and isinstance(method.observers, PromptRows):
        return method.observers
    if method is not None and method.ahead is not None and rides_along(model):
        with clock("draft"):
            return method.ahead(model, ids, settings)
    return None


def observed_scores(
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
    return candidate_scores(combined(observers, mine, theirs, length), recipe, key.shape[1])
