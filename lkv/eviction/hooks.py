"""`evicting`: transformers' own generate() on an evicted cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from lkv.cache.evictable import full_layers, make_evictable, prompt_cache
from lkv.errors import UserError
from lkv.eviction.compact import compact_in_place
from lkv.eviction.observation import recorder
from lkv.eviction.pipeline import check_budgets, select_entries
from lkv.eviction.prefilled import Prefilled
from lkv.interface import Answering, Importance, Method, PromptRows
from lkv.model.architecture import unwrapped
from lkv.model.attention import Pass, observable, watching
from lkv.model.load import stop_ids
from lkv.model.support import require_evictable


@contextmanager
def evicting(
    model: nn.Module, method: Method, budget: int, answer_tokens: int = Answering.max_tokens
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
    recorded: dict[PromptRows, Importance] = {}

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
        recorded.clear()
        recorded.update({row: [] for row in method.rows})
        watched = Pass(observe=recorder(cache, recorded, _ids(args, kwargs).shape[1]))
        return args, {**kwargs, "lkv_pass": watched}

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        nonlocal inside, watched
        if watched is None or kwargs.get("lkv_pass") is not watched:
            return
        watched = None
        cache, first = kwargs["past_key_values"], out.logits[:, -1].argmax(-1)
        answering = Answering(stop_ids(model), answer_tokens)
        prefilled = Prefilled(model, _ids(args, kwargs), cache, first, dict(recorded), answering)
        inside = True
        try:
            with torch.no_grad():
                [selection] = select_entries(prefilled, method, [budget])
        finally:
            inside = False
        compact_in_place(cache, selection.kept)

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
