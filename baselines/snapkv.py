"""SnapKV: the last 32 prompt tokens observe, and stay.

s_j = Σ_{i in window} softmax_j(q_i · k_j), max-pooled over 7 neighbours so that an important entry brings its
context along; top-(C - 32) plus the window (Li et al. 2024, arXiv 2404.14469, §4).

Settings of the LookaheadKV paper (p. 25): window 32, max-pool 7. Deviation: the original selects per query
head on repeated keys; here the query heads of a KV head share one choice (group mean before pooling, as in
KVCache-Factory's kv_head mode), so that every method stores the same bytes at the same budget.
"""

from __future__ import annotations

from lkv.interface import Method, PromptRows, Recipe
from lkv.model.shape import Shape
from lkv.model.theory import compact_s, scores_s

WINDOW = 32


def overhead_s(shape: Shape, length: int, budget: int, draft: Shape | None = None) -> float:
    return scores_s(shape, WINDOW, length) + compact_s(shape, budget)


METHOD = Method(
    "snapkv",
    Recipe(pool="max", kernel=7, window=WINDOW),
    PromptRows(last=WINDOW),
    label="SnapKV",
    colour="#0072B2",
    marker="s",
    line=(0, (3, 1)),
    theory=overhead_s,
)
