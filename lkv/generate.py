"""Answers from an evicted cache: through the engine, or with the model's own `generate()` made to evict."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from lkv import second
from lkv.architecture import unwrapped
from lkv.attention import Pass, observable, watching
from lkv.cache import check_held, entries, full_layers, make_evictable, prompt_cache
from lkv.decode import decode
from lkv.engine import check_budgets, evicted, observe, prefill_layerwise, prefill_scored
from lkv.errors import UserError
from lkv.interface import Importance, Method, PromptRows
from lkv.models import stop_ids
from lkv.prefill import Prefilled, watcher
from lkv.select import select
from lkv.support import require_evictable


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
        ids, settings = ids.to(model.device), dict[str, Any](stop=stop, answer_tokens=max_new_tokens)
        # A second pass needs the whole cache, which is small where launches are what a prefill waits for.
        if method is not None and method.ahead is not None and second.launch_bound(model, *ids.shape):
            prefilled, scores = prefill_scored(model, ids, method, **settings)
            [row] = evicted(prefilled, scores, method, budget)
        else:
            prefilled, [row] = prefill_layerwise(model, ids, method, budget, **settings)
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


@contextmanager
def evicting(
    model: nn.Module, method: Method, budget: int, answer_tokens: int = Prefilled.answer_tokens
) -> Iterator[None]:
    """Inside, each prompt that the model prefills is evicted to `budget` entries; its `generate()` works.

    `answer_tokens` matters to methods that write an answer of their own first (a draft, the oracle).

    Works by hooks on the model's forward: the prefill call is watched, then the cache that was passed in
    drops its entries. Prompts of one batch must have one length (no padding). A prompt beyond the budget that
    is read around these hooks (`model.forward(…)`, `model.model(…)`) raises UserError.

    `model` is a transformers model, or one inside PEFT or torch.compile, whose hooks sit on the one inside.
    """
    check_budgets(method, [budget])
    model = unwrapped(model)
    require_evictable(model)
    own_modules = {id(module) for module in model.modules()}
    inside = False  # drafts and lookahead passes are forward calls too: they must not evict
    watched: Pass | None = None
    seen: dict[PromptRows, Importance] = {}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal watched
        if inside or "lkv_pass" in kwargs:
            return None
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        if cache is None:
            raise UserError(
                "there is nothing to evict from: the model was called without a cache (use_cache)"
            )
        if cache.get_seq_length() > 0:
            if _ids(args, kwargs).shape[1] > 1:
                raise UserError(
                    "after an eviction tokens come one at a time here: no chunked prefill, no assisted "
                    "decoding, no second prompt on the same cache"
                )
            return None
        if mask is not None and not bool(mask.all()):
            raise UserError(
                "eviction needs prompts without padding; pass one prompt, or prompts of one length"
            )
        if not cache.layers and cache.layer_class_to_replicate is DynamicLayer:  # DynamicCache()
            cache.layers = prompt_cache(model.config).layers
        make_evictable(cache)
        if not full_layers(cache):
            raise UserError(
                f"a {type(cache).__name__} has no layer that entries can be dropped from; "
                "let generate() make its own dynamic cache"
            )
        seen.clear()
        seen.update({row: [] for row in method.rows})
        watched = Pass(observe=watcher(cache, seen, _ids(args, kwargs).shape[1]))
        return args, {**kwargs, "lkv_pass": watched}

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        nonlocal inside, watched
        if watched is None or kwargs.get("lkv_pass") is not watched:
            return
        watched = None
        cache, first = kwargs["past_key_values"], out.logits[:, -1].argmax(-1)
        prefilled = Prefilled(
            model, _ids(args, kwargs), cache, first, dict(seen), stop_ids(model), answer_tokens
        )
        inside = True
        try:
            with torch.no_grad():
                [importances] = observe(prefilled, method, [budget])
        finally:
            inside = False
        kept = select(importances, method.recipe, budget, prefilled.kv_heads)
        if kept is not None:
            for layer, index in zip(full_layers(cache), kept, strict=True):
                cache.layers[layer].keep(index)
            check_held([entries(cache, i)[0].shape[2] for i in full_layers(cache)], kept.counts)

    def unwatched(module: nn.Module, tokens: int) -> None:
        if tokens > budget and id(module) in own_modules:
            raise UserError(
                f"a prompt of {tokens} tokens was read without an eviction: the model was called around its "
                "hooks; call model(…) or model.generate(…), not its forward or its parts"
            )

    with observable(model), watching(unwatched):
        hooks = [
            model.register_forward_pre_hook(before, with_kwargs=True),
            model.register_forward_hook(after, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _ids(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    ids = kwargs.get("input_ids", args[0] if args else None)
    if not isinstance(ids, Tensor):
        raise UserError("eviction needs the prompt as input_ids; inputs_embeds are not supported")
    return ids


def _now(model: PreTrainedModel) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
