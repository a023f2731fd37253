"""From importance to kept entries: group, pool, budget per layer, forced keeps, top-k. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lkv.interface import Recipe

PYRAMID_BETA = 20  # PyramidKV's β: how much smaller the last layer's budget is


def select(importance: Sequence[Tensor], recipe: Recipe, budget: int, kv_heads: int) -> list[Tensor] | None:
    """The kept entries, ascending: one int64 [B, K, C_l] a layer; None when the whole prompt fits.

    importance: one [B, H, N] a layer. Decided before any schedule: a prompt that fits is left whole.
    """
    stored = [layer.shape[-1] for layer in importance]  # unequal only where layers were evicted before
    if budget >= max(stored):
        return None
    budgets = layer_budgets(recipe, budget, len(importance), max(stored))
    scores = [candidate_scores(layer, recipe, kv_heads) for layer in importance]
    return [keep(s, recipe, min(c, n), n) for s, c, n in zip(scores, budgets, stored, strict=True)]


def candidate_scores(importance: Tensor, recipe: Recipe, kv_heads: int) -> Tensor:
    """Scores [B, K, N - sinks - window] of the entries that compete: [B, H, N] grouped and pooled.

    Sinks and window are cut off before pooling, or their high scores would leak kernel // 2 positions into
    the candidates.
    """
    end = importance.shape[-1] - recipe.window
    scores = importance[..., recipe.sinks : end]
    if recipe.order == "group_pool":
        return pool(group(scores, recipe, kv_heads), recipe)
    return group(pool(scores, recipe), recipe, kv_heads)


def group(scores: Tensor, recipe: Recipe, kv_heads: int) -> Tensor:
    """[B, H, N] → [B, K, N]: the query heads of a KV head agree on one score."""
    grouped = scores.unflatten(1, (kv_heads, -1))
    return grouped.mean(2) if recipe.group == "mean" else grouped.amax(2)


def pool(scores: Tensor, recipe: Recipe) -> Tensor:
    """One-dimensional pooling along the prompt, stride 1, same length (SnapKV's clustering)."""
    if recipe.pool is None or recipe.kernel == 1:
        return scores
    pooling = F.max_pool1d if recipe.pool == "max" else F.avg_pool1d
    return pooling(scores, recipe.kernel, stride=1, padding=recipe.kernel // 2)


def keep(scores: Tensor, recipe: Recipe, budget: int, prompt: int) -> Tensor:
    """Top candidates plus sinks and window, ascending: scores [B, K, N'] → int64 [B, K, budget].

    Ties go to the earlier entry: the sort is stable, so the choice is the same on every run. Max-pooling
    makes ties the rule, not the exception.
    """
    free = budget - recipe.sinks - recipe.window
    chosen = scores.sort(dim=-1, descending=True, stable=True).indices[..., :free] + recipe.sinks
    sinks = torch.arange(recipe.sinks, device=scores.device).expand(*scores.shape[:2], -1)
    window = torch.arange(prompt - recipe.window, prompt, device=scores.device).expand(*scores.shape[:2], -1)
    return torch.cat([sinks, chosen, window], -1).sort(-1).values


def layer_budgets(recipe: Recipe, budget: int, layers: int, prompt: int) -> list[int]:
    """Entries kept per layer; they always sum to layers · budget.

    `pyramid` is PyramidKV's arithmetic progression from `high` in the first layer to `low` in the last, with
    (C - W) // β at the top of the pyramid. The original rounds the step down, which spends up to 21 % more
    than the nominal budget; here the remainders are handed out largest first (see `original_pyramid`).
    """
    if recipe.schedule == "uniform" or layers == 1:
        return [budget] * layers
    bounds = _pyramid_bounds(recipe, budget, prompt)
    if bounds is None:
        return [budget] * layers
    high, low = bounds
    ramp = [high - (high - low) * layer / (layers - 1) for layer in range(layers)]
    floor = [int(value) for value in ramp]
    spare = layers * (budget - recipe.window - recipe.sinks) - sum(floor)
    by_remainder = sorted(range(layers), key=lambda layer: (floor[layer] - ramp[layer], layer))
    for layer in by_remainder[:spare]:
        floor[layer] += 1
    return [value + recipe.window + recipe.sinks for value in floor]


def original_pyramid(recipe: Recipe, budget: int, layers: int, prompt: int) -> list[int]:
    """PyramidKV's layer budgets with its own integer step, for comparison with published settings."""
    bounds = _pyramid_bounds(recipe, budget, prompt)
    if bounds is None:
        return [budget] * layers
    high, low = bounds
    step = (high - low) // (layers - 1)
    return [high - layer * step + recipe.window for layer in range(layers)]


def _pyramid_bounds(recipe: Recipe, budget: int, prompt: int) -> tuple[int, int] | None:
    free = budget - recipe.window - recipe.sinks
    if prompt < 2 * free:
        return None  # too short for a pyramid: uniform, as in the original
    low = free // PYRAMID_BETA
    high = 2 * free - low
    most = prompt - recipe.window - recipe.sinks
    if high >= most:  # a layer cannot keep more than there is: the surplus goes to the other end
        high, low = most, 2 * free - most
    return high, low
