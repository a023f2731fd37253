"""Batches of training prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from random import Random
from typing import Any

from lkv.data.shards import Stored
from lkv.errors import UserError
from lkv.model.load import Loaded

MOST_TOKENS = 1 << 16  # of a batch on CUDA, worked on at once


def largest_batch(loaded: Loaded) -> int | None:
    """Tokens of a batch that are worked on at once: what a GPU's memory holds of a small model's."""
    return MOST_TOKENS if loaded.model.device.type == "cuda" else None


def lengths_of(prompts: Sequence[dict[str, Any]]) -> Sequence[int]:
    return prompts.lengths if isinstance(prompts, Stored) else [prompt["length"] for prompt in prompts]


def answers_of(prompts: Sequence[dict[str, Any]]) -> Sequence[int]:
    return prompts.answers if isinstance(prompts, Stored) else [len(prompt["response"]) for prompt in prompts]


def in_batches(
    indices: Sequence[int], lengths: Sequence[int], size: int, most_tokens: int | None = None
) -> Iterator[list[int]]:
    """Batches of one length, in order; the last of each length may be smaller."""
    for length, group in groupby(sorted(indices, key=lengths.__getitem__), key=lengths.__getitem__):
        same = list(group)
        step = size if most_tokens is None else max(1, min(size, most_tokens // max(1, length)))
        for start in range(0, len(same), step):
            yield same[start : start + step]


def full_batches(indices: Sequence[int], lengths: Sequence[int], size: int, rng: Random) -> list[list[int]]:
    """Batches of exactly `size` prompts, drawn once; what fills no batch is left out.

    Of one length where lengths were chosen; of any lengths where they are natural, too many to fill batches.
    """
    shuffled = rng.sample(indices, k=len(indices))
    if len({lengths[i] for i in indices}) * size > len(indices):
        return [shuffled[start : start + size] for start in range(0, len(indices) - size + 1, size)]
    batches = [batch for batch in in_batches(shuffled, lengths, size) if len(batch) == size]
    if not batches:
        raise UserError(f"no length has {size} training prompts; give more samples or a smaller batch")
    return batches


def epochs(batches: int, rng: Random, steps: int) -> list[int]:
    """Which batch each step takes: epoch after epoch, each in a new order."""
    order: list[int] = []
    while len(order) < steps:
        order += rng.sample(range(batches), k=batches)
    return order[:steps]
