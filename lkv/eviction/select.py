"""From importance to kept entries: group, pool, budget per layer, forced keeps, top-k. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor

from lkv import kernels
from lkv.eviction.layer_budgets import layer_budgets
from lkv.interface import Recipe


@dataclass(frozen=True, eq=False)
class Kept(Sequence[Tensor]):
    """The kept entries, int64 [L, B, K, C] ascending, padded behind, and how many of them count, [L, B, K].

    `head_counts` lies on the CPU. What gathers entries today needs the same count in all KV heads of a layer;
    `kept[layer]` is then int64 [B, K, C_l].
    """

    indices: Tensor
    head_counts: Tensor

    @classmethod
    def of_layers(cls, indices: Tensor, counts: Sequence[int]) -> Kept:
        """Every KV head of layer l keeps counts[l] entries."""
        return cls(indices, torch.tensor(counts)[:, None, None].expand(indices.shape[:3]))

    @cached_property
    def counts(self) -> list[int]:
        """Entries a layer keeps in each KV head; ValueError where heads keep unequal numbers."""
        widest = self.head_counts.amax((1, 2))
        if not bool((self.head_counts == widest[:, None, None]).all()):
            raise ValueError("the KV heads of a layer keep unequal numbers of entries")
        return [int(count) for count in widest]

    @overload
    def __getitem__(self, layer: int) -> Tensor: ...
    @overload
    def __getitem__(self, layer: slice) -> list[Tensor]: ...
    def __getitem__(self, layer: int | slice) -> Tensor | list[Tensor]:
        if isinstance(layer, slice):
            return [self[i] for i in range(*layer.indices(len(self)))]
        return self.indices[layer, ..., : self.counts[layer]]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def uniform(self) -> bool:
        """Whether every layer keeps as many."""
        return len(set(self.counts)) == 1


def select(importance: Sequence[Tensor], recipe: Recipe, budget: int, kv_heads: int) -> Kept | None:
    """The kept entries of importance [B, H, N] a layer; None when the whole prompt fits."""
    return select_budgets([importance], recipe, [budget], kv_heads)[0]


def select_budgets(
    importances: Sequence[Sequence[Tensor]], recipe: Recipe, budgets: Sequence[int], kv_heads: int
) -> list[Kept | None]:
    """As `select`, for several budgets: candidates of one importance object are scored once."""
    scored: dict[int, Sequence[Tensor]] = {}
    chosen: list[Kept | None] = []
    for importance, budget in zip(importances, budgets, strict=True):
        stored = [layer.shape[-1] for layer in importance]  # unequal only where layers were evicted before
        if budget >= max(stored):
            chosen.append(None)
            continue
        if id(importance) not in scored:
            scored[id(importance)] = candidates(importance, recipe, kv_heads)
        chosen.append(choose(scored[id(importance)], recipe, budget, stored))
    return chosen


PLAIN = Recipe(pool=None)  # the group's mean, nothing pooled or forced: what recall compares


def candidates(importance: Sequence[Tensor], recipe: Recipe, kv_heads: int) -> Sequence[Tensor]:
    """Scores [B, K, N_l - sinks - window] a layer of the entries that compete; one tensor where all agree."""
    if len({layer.shape for layer in importance}) == 1:
        return candidate_scores(torch.stack(list(importance)), recipe, kv_heads)  # type: ignore[return-value]
    return [candidate_scores(layer, recipe, kv_heads) for layer in importance]


def choose(scores: Sequence[Tensor], recipe: Recipe, budget: int, stored: Sequence[int]) -> Kept | None:
    """The kept entries from candidates' scores [B, K, N_l'] of layers that hold `stored` entries.

    None when everything fits: decided before any schedule, so that a prompt that fits is left whole.
    """
    if budget >= max(stored):
        return None
    budgets = layer_budgets(recipe, budget, len(scores), max(stored))
    counts = [min(count, entries) for count, entries in zip(budgets, stored, strict=True)]
    return keep_layers(scores, recipe, counts)


def candidate_scores(importance: Tensor, recipe: Recipe, kv_heads: int) -> Tensor:
    """Scores [..., K, N - sinks - window] of the entries that compete: [..., H, N] grouped and pooled.

    Sinks and window are cut off before pooling, or their high scores would leak kernel // 2 positions into
    the candidates.
    """
    end = max(recipe.sinks, importance.shape[-1] - recipe.window)
    scores = importance[..., recipe.sinks : end]
    if recipe.order == "group_pool":
        return pool(group(scores, recipe, kv_heads), recipe)
    return group(pool(scores, recipe), recipe, kv_heads)


def group(scores: Tensor, recipe: Recipe, kv_heads: int) -> Tensor:
    """[..., H, N] → [..., K, N]: the query heads of a KV head agree on one score."""
    grouped = scores.unflatten(-2, (kv_heads, scores.shape[-2] // kv_heads))
    return grouped.mean(-2) if recipe.group == "mean" else grouped.amax(-2)


def pool(scores: Tensor, recipe: Recipe) -> Tensor:
    """One-dimensional pooling along the prompt, stride 1, same length: neighbours come along."""
    if recipe.pool is None or recipe.kernel == 1 or not scores.numel():
        return scores
    pooling = F.max_pool1d if recipe.pool == "max" else F.avg_pool1d
    flat = scores.reshape(1, -1, scores.shape[-1])
    return pooling(flat, recipe.kernel, stride=1, padding=recipe.kernel // 2).view(scores.shape)


def keep_layers(scores: Sequence[Tensor], recipe: Recipe, counts: Sequence[int]) -> Kept:
    """The counts[l] entries that each layer keeps, by scores [B, K, N_l'] of its candidates."""
    same = len({layer.shape for layer in scores}) == 1
    if same and kernels.usable(scores[0]):
        from lkv.kernels import topk

        stacked = scores if isinstance(scores, Tensor) else torch.stack(list(scores))
        forced = recipe.sinks + recipe.window
        free = torch.tensor([count - forced for count in counts], dtype=torch.int32)
        each = stacked.shape[1] * stacked.shape[2]
        free = free.repeat_interleave(each).to(stacked.device, non_blocking=True)
        flat = topk.keep(stacked.flatten(0, 2), free, recipe.sinks, recipe.window, max(counts))
        return Kept.of_layers(flat.view(*stacked.shape[:3], -1), counts)
    entries = [layer.shape[-1] + recipe.sinks + recipe.window for layer in scores]
    kept = [keep(layer, recipe, c, n) for layer, c, n in zip(scores, counts, entries, strict=True)]
    padded = [F.pad(index, (0, max(counts) - index.shape[-1])) for index in kept]
    return Kept.of_layers(torch.stack(padded), counts)


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
