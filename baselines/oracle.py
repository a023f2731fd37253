"""Oracle: the model's own full-cache answer observes. A ceiling, not a method: it needs what it predicts.

s_j = mean over answer tokens i of softmax_j(q_i · k_j) (LookaheadKV eq. 1, the training target). Selected
like LookaheadKV, so that the two differ in their observers alone. (Recall is measured against the target
*unpooled*.)
"""

from __future__ import annotations

from collections.abc import Sequence

from lkv.interface import Method, Prompt, Recipe, Tail


def observers(prompt: Prompt, budgets: Sequence[int]) -> list[Tail]:
    return [prompt.after(prompt.answers)] * len(budgets)


METHOD = Method(
    "oracle",
    Recipe(pool="max", kernel=7),
    observers,
    knows_answer=True,
    label="Oracle",
    colour="#555555",
    line=(0, (1, 1.2)),
)
