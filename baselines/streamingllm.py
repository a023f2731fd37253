"""StreamingLLM: nobody looks; 4 attention sinks and the most recent tokens stay.

Kept: 0 … 3 and N - C + 4 … N - 1 (Xiao et al. 2024, arXiv 2309.17453, §3). Kept keys hold their positions,
as in KVCache-Factory; the original re-rotates them, which matters only beyond the model's context.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lkv.interface import Method, Ranking, Recipe


def recency(batch: int, heads: int, prompt: int, layer: int, seed: int, device: torch.device) -> Tensor:
    return torch.arange(prompt, dtype=torch.float32, device=device).expand(batch, heads, prompt)


METHOD = Method("streamingllm", Recipe(pool=None, sinks=4), Ranking(recency))
