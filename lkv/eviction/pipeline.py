"""The order of steps: prefill → observe → select → compact → decode. All that evicts goes through here.

One prefill of a prompt serves every method and every budget; their decodes run as one batch of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lkv.cache.rows import Row
from lkv.errors import UserError
from lkv.eviction.answer import full_cache_answers, tail_after
from lkv.eviction.compact import compact
from lkv.eviction.decode import Clock, decode, no_clock
from lkv.eviction.observe import importance_by, require_rows, stored_layer
from lkv.eviction.prefilled import Prefilled
from lkv.eviction.select import Kept, choose, select_budgets
from lkv.interface import Answering, Importance, Method, Observers, Recorded, StoredLayer, Tail


class Selection(NamedTuple):
    """What a method keeps at one budget (None: all), and the importance that it chose by, if known."""

    kept: Kept | None
    importance: Importance | None


def observe(
    prefilled: Prefilled, method: Method, budgets: Sequence[int], clock: Clock = no_clock
) -> list[Importance]:
    """Importance by the method's observers, one answer a budget; the same observers observe once."""
    require_rows(list(prefilled.recorded), method.rows, method.name)
    observers = method.observers
    with clock("draft"):  # where observers come from: a draft for some, next to nothing for most
        answers: Sequence[Observers] = (
            observers(SeenPrompt(prefilled, method), budgets)
            if callable(observers)
            else [observers] * len(budgets)
        )
    found: dict[int, Importance] = {}
    with clock("observe"):
        for answer in answers:
            if id(answer) not in found:
                found[id(answer)] = importance_by(prefilled, answer, method.extra_rows)
    return [found[id(answer)] for answer in answers]


def select_entries(
    prefilled: Prefilled, method: Method, budgets: Sequence[int], clock: Clock = no_clock
) -> list[Selection]:
    """observe → select for several budgets of one method, by the prefill's own `scores` if it has any."""
    check_budgets(method, budgets)
    if prefilled.scores is not None:
        stored = [prefilled.length] * len(prefilled.scores)
        with clock("select"):
            return [Selection(choose(prefilled.scores, method.recipe, b, stored), None) for b in budgets]
    importances = observe(prefilled, method, budgets, clock)
    with clock("select"):
        kept = select_budgets(importances, method.recipe, budgets, prefilled.kv_heads)
    return [Selection(*pair) for pair in zip(kept, importances, strict=True)]


def evict_to(prefilled: Prefilled, method: Method | None, budget: int, clock: Clock = no_clock) -> list[Row]:
    """observe → select → compact: one Row a prompt of the batch; None keeps the full cache."""
    if method is None:
        return compact(prefilled, None)
    [selection] = select_entries(prefilled, method, [budget], clock)
    with clock("compact"):
        return compact(prefilled, selection.kept)


def evict(prefilled: Prefilled, method: Method, budgets: Sequence[int]) -> list[list[Row]]:
    """observe → select → compact for several budgets of one method."""
    return [compact(prefilled, selection.kept) for selection in select_entries(prefilled, method, budgets)]


@dataclass(frozen=True, eq=False)
class SeenPrompt:
    """What a method sees of a prompt: see lkv.interface.Prompt."""

    prefilled: Prefilled
    method: Method

    @property
    def ids(self) -> Tensor:
        return self.prefilled.ids

    @property
    def layers(self) -> Sequence[int]:
        return self.prefilled.full_layers

    @property
    def answering(self) -> Answering:
        return self.prefilled.answering

    def stored(self, layer: int) -> StoredLayer:
        return stored_layer(self.prefilled, layer)

    @property
    def answers(self) -> list[list[int]]:
        return full_cache_answers(self.prefilled)

    def after(self, texts: Sequence[Sequence[int]]) -> Tail:
        return tail_after(self.prefilled, texts)

    def draft(self, budgets: Sequence[int], tokens: int) -> list[Recorded]:
        if self.method.drafts_on is None:
            raise ValueError(
                f"{self.method.name} drafts, but names no method in drafts_on that evicts for it"
            )
        of_budgets = evict(self.prefilled, self.method.drafts_on, budgets)
        rows = [row for of_budget in of_budgets for row in of_budget]
        drafts = decode(self.prefilled.model, rows, tokens, self.answering.stop, record=True)
        written = torch.tensor([max(1, len(draft)) for draft in drafts.tokens])
        steps = torch.arange(drafts.queries[0].shape[2])
        valid = (steps < written[:, None]).to(self.ids.device)
        batch = len(self.prefilled.first)
        spans = [slice(i * batch, (i + 1) * batch) for i in range(len(budgets))]
        return [
            Recorded([queries[span] for queries in drafts.queries], drafts.scalings, valid[span])
            for span in spans
        ]


def check_budgets(method: Method, budgets: Sequence[int]) -> None:
    """Raises UserError for a budget that the method cannot keep to."""
    for budget in budgets:
        if budget < method.smallest_budget:
            recipe = method.recipe
            forced = recipe.window + recipe.sinks
            keeps = f"always keeps {recipe.window} recent tokens and {recipe.sinks} sinks"
            works = f"works on a cache of {method.smallest_budget} or more"
            reason = keeps if method.smallest_budget == forced else works
            raise UserError(
                f"budget {budget} is too small for {method.name}, which {reason}; "
                f"give {method.smallest_budget} or more"
            )
