"""Budgets that differ by layer: a pyramid, wide below (Cai et al. 2024, arXiv 2406.02069)."""

from __future__ import annotations

from lkv.interface import Recipe

PYRAMID_BETA = 20  # the paper's β: how much smaller the last layer's budget is


def layer_budgets(recipe: Recipe, budget: int, layers: int, prompt: int) -> list[int]:
    """Entries kept per layer; they always sum to layers · budget.

    `pyramid` is an arithmetic progression from `high` in the first layer to `low` in the last, with
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
    """The pyramid with the authors' integer step, for comparison with published settings."""
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
