"""Oracle: the model's own full-cache answer looks. A ceiling, not a method: it needs what it predicts.

s_j = mean over answer tokens i of softmax_j(q_i · k_j) (LookaheadKV eq. 1, the training target). Selected
like LookaheadKV, so that the two differ in their observers alone. (Recall is measured against the target
*unpooled*.)
"""

from __future__ import annotations

from collections.abc import Sequence

from lkv.eviction.answer import answer_tail
from lkv.eviction.prefilled import Prefilled
from lkv.interface import Method, Recipe, Tail


def observers(prefilled: Prefilled, budgets: Sequence[int]) -> list[Tail]:
    return [answer_tail(prefilled)] * len(budgets)


METHOD = Method("oracle", Recipe(pool="max", kernel=7), observers, knows_answer=True)
