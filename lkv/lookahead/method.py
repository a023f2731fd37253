"""LookaheadKV: 32 learned tokens observe, with a LoRA that is active on their rows alone.

s_j = mean over lookahead tokens i of softmax_j(q_i · k_j), max-pool 7, group mean, top-C (LookaheadKV, ICLR
2026, arXiv 2603.10899, eq. 2-3). The trained modules (lkv.lookahead.adapter) give the observers.
"""

from __future__ import annotations

from collections.abc import Sequence

from lkv.errors import UserError
from lkv.interface import Method, Needs, Prompt, Recipe, Tail
from lkv.lookahead.arm import TOKENS
from lkv.model.shape import Shape
from lkv.model.theory import compact_s, rows_s, scores_s


def overhead_s(shape: Shape, length: int, budget: int, draft: Shape | None = None) -> float:
    return rows_s(shape, TOKENS, length) + scores_s(shape, TOKENS, length) + compact_s(shape, budget)


def untrained(prompt: Prompt, budgets: Sequence[int]) -> list[Tail]:
    raise UserError("lookaheadkv needs its trained modules: give --adapter DIR (lkv train writes one)")


def build(needs: Needs) -> Method:
    method: Method = needs.adapter.method(needs.recipe, needs.extra_rows)
    return method


METHOD = Method(
    "lookaheadkv",
    Recipe(pool="max", kernel=7, group="mean", order="group_pool"),
    untrained,
    needs="adapter",
    build=build,
    label="LookaheadKV",
    colour="#D55E00",
    marker="o",
    theory=overhead_s,
)
