"""Single pass: observers that are rows of the prefill itself, and the fastest prefill for one method."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lkv.cache.evictable import full_layers, prompt_cache
from lkv.eviction import importance as maths
from lkv.eviction import second_pass
from lkv.eviction.decode import Clock, no_clock
from lkv.eviction.observation import allows_single_pass, prompt_row_inputs, tail_inputs
from lkv.eviction.observe import combined
from lkv.eviction.prefill import prefill, read
from lkv.eviction.prefilled import Prefilled
from lkv.eviction.select import candidate_scores
from lkv.interface import GREEDY, Answering, Attended, Method, PromptRows, Tail
from lkv.model.attention import Pass


@torch.no_grad()
def prefill_for(
    model: PreTrainedModel,
    ids: Tensor,
    method: Method | None,
    answering: Answering = GREEDY,
    clock: Clock = no_clock,
) -> Prefilled:
    """prefill and observe for one method the fastest way; `pipeline.select_entries` goes on for any budget.

    Where its observers are rows of the pass itself the result holds the candidates' `scores`. Other methods
    observe after the prefill; so does a tail for which a second pass is faster.
    """
    observers = rows_of_the_pass(model, ids, method, answering, clock)
    if observers is not None and second_pass.prefers(model, observers, *ids.shape):
        observers = None
    if method is None or observers is None:
        with clock("prefill"):
            return prefill(model, ids, method.rows if method else (), answering=answering)[0]
    cache = prompt_cache(model.config)
    evictable, scores = set(full_layers(cache)), list[Tensor]()

    def record(attended: Attended) -> None:
        if attended.layer in evictable:
            with clock("observe"):
                scores.append(observed_scores(observers, method, attended, ids.shape[1]))

    tail = observers if isinstance(observers, Tail) else None
    with clock("prefill"):
        prefilled = read(model, ids, cache, tail, Pass(observe=record), answering)
    prefilled.scores = scores
    return prefilled


def rows_of_the_pass(
    model: PreTrainedModel, ids: Tensor, method: Method | None, answering: Answering, clock: Clock
) -> Tail | PromptRows | None:
    """The method's observers, where they are rows of the prefill pass itself."""
    if method is not None and isinstance(method.observers, PromptRows):
        return method.observers
    if method is not None and method.tail_before_prefill is not None and allows_single_pass(model):
        with clock("draft"):
            return method.tail_before_prefill(model, ids, answering)
    return None


def observed_scores(
    observers: Tail | PromptRows, method: Method, attended: Attended, length: int, exact: bool = False
) -> Tensor:
    """Candidates' scores [B, K, N'] by rows of the prefill itself; a tail's rows follow the prompt's."""
    if isinstance(observers, PromptRows):
        return maths.scores(prompt_row_inputs(observers, attended, length, length), method.recipe, exact)
    inputs, extra = tail_inputs(observers, attended, length), method.extra_rows
    if extra is None:
        return maths.scores(inputs, method.recipe, exact)
    own = maths.importance(inputs, exact)
    others = maths.importance(prompt_row_inputs(extra, attended, length, length), exact)
    both = combined(observers, extra, own, others, length)
    return candidate_scores(both, method.recipe, attended.key.shape[1])


@torch.no_grad()
def score_errors(model: PreTrainedModel, ids: Tensor, method: Method, layers: Collection[int]) -> list[float]:
    """How far fused kernels' scores are from the reference's, relative, in some layers of a prefill.

    Compared are the method's own scores where its observers are rows of the pass, the importance where a
    second pass gives it, else that of the last 32 rows.
    """
    observers = rows_of_the_pass(model, ids, method, Answering(), no_clock) or PromptRows(last=32)
    if isinstance(observers, Tail) and second_pass.prefers(model, observers, *ids.shape):
        return second_pass.errors(prefill(model, ids)[0], observers, layers)
    length, errors = ids.shape[1], list[float]()

    def compare(attended: Attended) -> None:
        if attended.layer in layers:
            truth = observed_scores(observers, method, attended, length, exact=True)
            without_lse = replace(attended, lse=None)
            for given in (attended, without_lse):
                found = observed_scores(observers, method, given, length)
                errors.append(float((found - truth).norm() / truth.norm()))

    tail = observers if isinstance(observers, Tail) else None
    read(model, ids, prompt_cache(model.config), tail, Pass(observe=compare), Answering())
    return errors
