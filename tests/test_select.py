"""Promises of the selection: exact budgets, forced keeps, determinism, and the recipe's order of steps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lkv.eviction.layer_budgets import layer_budgets, original_pyramid
from lkv.eviction.select import candidate_scores, select
from lkv.interface import Recipe

recipes = st.builds(
    Recipe,
    pool=st.sampled_from(["max", "avg", None]),
    kernel=st.sampled_from([1, 3, 7]),
    group=st.sampled_from(["mean", "max"]),
    order=st.sampled_from(["group_pool", "pool_group"]),
    window=st.integers(0, 12),
    sinks=st.integers(0, 5),
    schedule=st.sampled_from(["uniform", "pyramid"]),
)


@settings(max_examples=150, deadline=None)
@given(recipes, st.integers(1, 4), st.integers(18, 120), st.integers(17, 130), st.integers(0, 10**6))
def test_exactly_the_budget_is_kept_sorted_unique_with_window_and_sinks(recipe, layers, prompt, budget, seed):
    # Whole numbers make ties common, as max-pooling does.
    g = torch.Generator().manual_seed(seed)
    seen = [torch.randint(0, 4, (2, 4, prompt), generator=g).float() for _ in range(layers)]
    kept = select(seen, recipe, budget, kv_heads=2)
    if budget >= prompt:
        assert kept is None
        return
    assert kept is not None
    assert sum(k.shape[-1] for k in kept) == layers * budget
    forced = set(range(recipe.sinks)) | set(range(prompt - recipe.window, prompt))
    for layer in kept:
        for head in layer.flatten(0, 1).tolist():
            assert head == sorted(set(head))
            assert forced <= set(head) <= set(range(prompt))
    again = select(seen, recipe, budget, kv_heads=2)
    assert all(torch.equal(a, b) for a, b in zip(kept, again or [], strict=True))


def brute_force(importance, recipe, budget, kv_heads):
    """The recipe in plain loops over one layer [H, N] (batch 1), for a uniform budget."""
    heads, prompt = len(importance), len(importance[0])
    lo, hi = recipe.sinks, prompt - recipe.window
    size = heads // kv_heads

    def pool(scores):
        if recipe.pool is None:
            return scores
        out = []
        for i in range(len(scores)):
            near = scores[max(0, i - recipe.kernel // 2) : i + recipe.kernel // 2 + 1]
            out.append(max(near) if recipe.pool == "max" else sum(near) / recipe.kernel)
        return out

    def group(rows):
        return [(sum(c) / size if recipe.group == "mean" else max(c)) for c in zip(*rows, strict=True)]

    kept = []
    for head in range(kv_heads):
        rows = [list(map(float, r[lo:hi])) for r in importance[head * size : (head + 1) * size]]
        scores = pool(group(rows)) if recipe.order == "group_pool" else group([pool(r) for r in rows])
        best = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[: budget - lo - recipe.window]
        kept.append(sorted([*range(lo), *(i + lo for i in best), *range(hi, prompt)]))
    return kept


@settings(max_examples=80, deadline=None)
@given(recipes.filter(lambda r: r.schedule == "uniform"), st.integers(20, 60), st.integers(0, 10**6))
def test_selection_equals_brute_force(recipe, prompt, seed):
    # Eighths: sums and means of two are exact in float32, so that ties are ties on both sides.
    values = torch.randint(0, 64, (4, prompt), generator=torch.Generator().manual_seed(seed)) / 8
    if recipe.pool == "avg":
        recipe = Recipe(**{**recipe.__dict__, "pool": "max"})
    kept = select([values[None]], recipe, 18, kv_heads=2)
    assert kept is not None
    assert kept[0][0].tolist() == brute_force(values.tolist(), recipe, 18, kv_heads=2)


def test_ties_go_to_the_earlier_entry():
    kept = select([torch.ones(1, 2, 50)], Recipe(pool=None), 5, kv_heads=1)
    assert kept is not None
    assert kept[0].tolist() == [[[0, 1, 2, 3, 4]]]


def test_window_scores_do_not_leak_into_the_candidates():
    seen = torch.zeros(1, 1, 40)
    seen[..., 30:] = 1.0
    seen[..., 3] = 0.5
    scores = candidate_scores(seen, Recipe(window=10, kernel=7), kv_heads=1)
    assert scores[0, 0].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_with_max_pooling_the_order_of_pool_and_group_changes_the_choice():
    seen = torch.zeros(1, 2, 30)
    seen[0, 0, 5], seen[0, 1, 6] = 1.0, 1.0  # two heads look at neighbours
    seen[0, :, 20] = 0.6  # both look at one entry, less
    kept = {
        order: select([seen], Recipe(kernel=3, order=order), 3, kv_heads=1)[0].tolist()[0][0]
        for order in ("group_pool", "pool_group")
    }
    assert kept == {"group_pool": [19, 20, 21], "pool_group": [5, 6, 19]}


# protocols.md 3.6, recomputed there from PyramidKV's formula: mean budget a layer, prompt 8,000.
TABLE = {
    (32, 8): [71.5, 133.5, 259.5, 526.0, 1029.0, 2048.5],
    (32, 32): [64.0, 142.5, 267.5, 518.5, 1037.0, 2057.5],
    (36, 32): [77.5, 132.5, 259.0, 513.0, 1039.5, 2056.5],
    (28, 32): [68.0, 139.0, 266.5, 522.5, 1035.5, 2060.5],
    (16, 32): [65.0, 130.0, 259.0, 518.0, 1029.5, 2051.5],
}


@pytest.mark.parametrize(("layers", "window"), TABLE)
def test_original_rounding_gives_the_published_overspending(layers, window):
    recipe = Recipe(window=window, schedule="pyramid")
    budgets = (64, 128, 256, 512, 1024, 2048)
    means = [sum(original_pyramid(recipe, b, layers, 8000)) / layers for b in budgets]
    assert means == TABLE[layers, window]


@given(st.integers(1, 64), st.integers(0, 40), st.integers(1, 3000), st.integers(1, 9000))
def test_layer_budgets_sum_to_layers_times_budget_and_fit_the_prompt(layers, window, free, prompt):
    budget = window + free
    recipe = Recipe(window=window, schedule="pyramid")
    if budget >= prompt:
        return
    budgets = layer_budgets(recipe, budget, layers, prompt)
    assert sum(budgets) == layers * budget
    assert all(window <= b <= prompt for b in budgets)
    assert budgets == sorted(budgets, reverse=True)


def test_ours_differs_from_the_original_by_rounding_alone():
    recipe = Recipe(window=32, schedule="pyramid")
    ours = layer_budgets(recipe, 128, 32, 8000)
    exact = [188 - (188 - 4) * layer / 31 + 32 for layer in range(32)]
    assert all(abs(b - e) < 1 for b, e in zip(ours, exact, strict=True))
