"""H2O: every prompt token observes.

s_j = Σ_{i=1..N} softmax_j(q_i · k_j), causal: the heavy hitters (Zhang et al. 2023, arXiv 2306.14048, §4),
summed in chunks of rows. The most recent 32 stay, no pooling, once at the end of prefill, as in
KVCache-Factory (whose runner keeps 8; 32 is what the other baselines here keep).
"""

from __future__ import annotations

from lkv.interface import Method, PromptRows, Recipe
from lkv.model.shape import Shape
from lkv.model.theory import compact_s, scores_s


def overhead_s(shape: Shape, length: int, budget: int, draft: Shape | None = None) -> float:
    return scores_s(shape, length, length) + compact_s(shape, budget)


METHOD = Method(
    "h2o",
    Recipe(pool=None, window=32),
    PromptRows(last=None),
    label="H2O",
    colour="#E69F00",
    marker="P",
    line=(0, (4, 1, 1, 1)),
    theory=overhead_s,
)
