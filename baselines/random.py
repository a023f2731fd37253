"""Random: no observers; any C entries of each KV head. The floor that a method has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lkv.interface import Method, Ranking, Recipe, StoredLayer

if TYPE_CHECKING:
    from torch import Tensor


def draw(stored: StoredLayer) -> Tensor:
    import torch

    batch, _, length, _ = stored.key.shape
    generator = torch.Generator().manual_seed(stored.seed * 1009 + stored.layer)
    scores = torch.rand(batch, stored.heads, length, generator=generator)  # the same on every device
    return scores.to(stored.key.device)


METHOD = Method(
    "random",
    Recipe(pool=None),
    Ranking(draw),
    label="Random",
    colour="#999999",
    marker="x",
    line=(0, (3, 2)),
)
