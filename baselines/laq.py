"""LAQ (Lookahead Q-Cache): a draft observes, written by the model itself on a SnapKV-evicted cache.

The draft is greedy, 32 tokens, on SnapKV's cache of the same budget; its queries then attend to the *full*
prompt keys: s_j = Σ_{i in draft} softmax_j(q_i · k_j), max-pool 7, top-C (Wang et al. 2025). The LookaheadKV
paper caps drafts at 32 tokens (p. 25); LAQ's own code writes 8.

LAQ forces no window; `laqpp` adds the last 8 prompt tokens as observers and keeps them. Deviation: the mask
in LAQ's code hides late prompt keys from early draft queries; here every draft query sees the whole prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from baselines import snapkv
from lkv.interface import Method, Prompt, PromptRows, Recipe, Recorded
from lkv.model.shape import Shape
from lkv.model.theory import compact_s, decode_s, scores_s

DRAFT_TOKENS = 32


def observers(prompt: Prompt, budgets: Sequence[int], tokens: int = DRAFT_TOKENS) -> list[Recorded]:
    return prompt.draft(budgets, tokens)


def overhead_s(shape: Shape, length: int, budget: int, draft: Shape | None = None) -> float:
    drafted = DRAFT_TOKENS * decode_s(shape, budget) + scores_s(shape, DRAFT_TOKENS, length)
    return scores_s(shape, snapkv.WINDOW, length) + drafted + compact_s(shape, budget)


METHOD = Method(
    "laq",
    Recipe(),
    observers,
    drafts_on=snapkv.METHOD,
    drafted_tokens=DRAFT_TOKENS,
    label="LAQ",
    colour="#009E73",
    marker="D",
    line=(0, (8, 2, 1, 2)),
    theory=overhead_s,
)
PLUS_PLUS = replace(
    METHOD,
    name="laqpp",
    recipe=Recipe(window=8),
    extra_rows=PromptRows(last=8),
    label="LAQ++",
    marker="d",
    line=(0, (3, 1, 1, 1, 1, 1)),
    theory=None,
)
