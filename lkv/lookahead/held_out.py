"""Held-out prompts: loss and recall before and after training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from lkv.eviction.importance import kl_divergence, top_recall
from lkv.eviction.prefill import observe_tail
from lkv.eviction.select import PLAIN, candidates
from lkv.lookahead.adapter import LookaheadKV
from lkv.lookahead.batches import in_batches, largest_batch, lengths_of
from lkv.lookahead.loss import prepare
from lkv.model.load import Loaded

RECALL_BUDGET = 128


class HeldOut(NamedTuple):
    """Of prompts that training never sees, means per prompt."""

    kl: float
    recall: float  # of the target's top RECALL_BUDGET entries, or a quarter of a short prompt's


@torch.no_grad()
def held_out(loaded: Loaded, adapter: LookaheadKV, prompts: Sequence[dict[str, Any]], batch: int) -> HeldOut:
    """How well the adapter predicts: what arms, rates and mixtures are chosen by."""
    if not prompts:
        return HeldOut(math.nan, math.nan)
    lengths, kl, recall = lengths_of(prompts), 0.0, 0.0
    for part in in_batches(range(len(prompts)), lengths, batch, largest_batch(loaded)):
        prepared = prepare(loaded, [prompts[i] for i in part])
        prediction = observe_tail(prepared.prefilled, adapter.tail(len(part)))
        budget = min(RECALL_BUDGET, lengths[part[0]] // 4)
        heads = prepared.prefilled.kv_heads
        tops = [
            [scores.topk(budget, -1).indices for scores in candidates(seen, PLAIN, heads)]
            for seen in (prediction, prepared.target)
        ]
        for target, predicted, found, best in zip(prepared.target, prediction, *tops, strict=True):
            kl += float(kl_divergence(target, predicted).mean()) * len(part)
            recall += float(top_recall(found, best).mean()) * len(part)
    layers = len(prepared.target)
    return HeldOut(kl / layers / len(prompts), recall / layers / len(prompts))
