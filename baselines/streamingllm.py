"""StreamingLLM: no observers; 4 attention sinks and the most recent tokens stay.

Kept: 0 … 3 and N - C + 4 … N - 1 (Xiao et al. 2024, arXiv 2309.17453, §3). Kept keys hold their positions,
as in KVCache-Factory; the original re-rotates them, which matters only beyond the model's context.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lkv.interface import Method, Ranking, Recipe, StoredLayer
from lkv.model.shape import Shape
from lkv.model.theory import compact_s

if TYPE_CHECKING:
    from torch import Tensor


def recency(stored: StoredLayer) -> Tensor:
    import torch

    batch, _, length, _ = stored.key.shape
    positions = torch.arange(length, dtype=torch.float32, device=stored.key.device)
    return positions.expand(batch, stored.heads, length)


def overhead_s(shape: Shape, length: int, budget: int, draft: Shape | None = None) -> float:
    return compact_s(shape, budget)


METHOD = Method(
    "streamingllm",
    Recipe(pool=None, sinks=4),
    Ranking(recency),
    label="StreamingLLM",
    colour="#56B4E9",
    marker="v",
    line=(0, (5, 1.5)),
    theory=overhead_s,
)
