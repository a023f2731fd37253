"""The one place with the order of steps: prefill → observe → select → compact → decode.

One prefill of a prompt serves every method and every budget; their decodes run as one batch of rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lkv.cache.rows import Row
from lkv.errors import UserError
from lkv.eviction.compact import compact
from lkv.eviction.decode import Clock, no_clock
from lkv.eviction.observe import observe
from lkv.eviction.prefilled import Prefilled
from lkv.eviction.select import choose, select
from lkv.interface import Method


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
