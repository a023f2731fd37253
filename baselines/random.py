"""Random: nobody looks; any C entries of each KV head. The floor that a method has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from lkv.interface import Method, Ranking, Recipe


def draw(batch: int, heads: int, prompt: int, layer: int, seed: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(seed * 1009 + layer)
    return torch.rand(batch, heads, prompt, generator=generator).to(device)  # the same on every device


METHOD = Method("random", Recipe(pool=None), Ranking(draw))
