"""Answers from an evicted cache: through the engine, or with the model's own `generate()` made to evict."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lkv.cache.evictable import full_layers
from lkv.errors import UserError
from lkv.eviction import second_pass as second
from lkv.eviction.decode import decode
from lkv.eviction.layerwise import prefill_layerwise
from lkv.eviction.pipeline import evict_to
from lkv.eviction.single_pass import prefill_for
from lkv.interface import Answering, Method
from lkv.model.architecture import unwrapped
from lkv.model.attention import observable
from lkv.model.load import stop_ids


@dataclass(frozen=True)
class Generation:
    """A greedy answer and what it cost. `kept` is the mean entries a layer and KV head."""

    tokens: list[int]
    prompt_tokens: int
    kept: float
    cache_bytes: int
    full_cache_bytes: int
    ttft_s: float
    tokens_per_s: float


def generate(
    model: nn.Module, ids: Tensor, method: Method | None, budget: int, max_new_tokens: int
) -> Generation:
    """Prefill, evict with `method` (None: keep everything), decode. ids int64 [1, N].

    `model` is a transformers model, or one inside PEFT or torch.compile.
    """
    model = unwrapped(model)
    if ids.shape[0] != 1:
        raise UserError(
            f"generate takes one prompt at a time, got a batch of {ids.shape[0]}; call it per prompt"
        )
    stop = stop_ids(model)
    with observable(model), torch.no_grad():
        start = _now(model)
        ids, answering = ids.to(model.device), Answering(stop, max_new_tokens)
        # A second pass needs the whole cache, which is small where launches are what a prefill waits for.
        if method is not None and method.tail_before_prefill and second.launch_bound(model, *ids.shape):
            prefilled = prefill_for(model, ids, method, answering)
            [row] = evict_to(prefilled, method, budget)
        else:
            prefilled, [row] = prefill_layerwise(model, ids, method, budget, answering)
        ready = _now(model)
        answer = decode(model, [row], max_new_tokens, stop)
        seconds = _now(model) - ready
    layers = full_layers(prefilled.cache)
    entry = [2 * k.element_size() * k.shape[0] * k.shape[2] for k in row.keys]
    gone = sum(entry[i] * (prefilled.length - row.keys[i].shape[1]) for i in layers)
    return Generation(
        tokens=answer.tokens[0],
        prompt_tokens=prefilled.length,
        kept=sum(row.keys[i].shape[1] for i in layers) / len(layers),
        cache_bytes=row.bytes,
        full_cache_bytes=row.bytes + gone,
        ttft_s=ready - start,
        tokens_per_s=answer.steps / seconds if answer.steps else 0.0,
    )


def _now(model: PreTrainedModel) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
