"""`evicting`: transformers' own generate() on an evicted cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
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
    evictor = _Evictor(model, method, budget, answer_tokens)
    with observable(model), watching(evictor.refuse_unwatched):
        hooks = [
            model.register_forward_pre_hook(evictor.before, with_kwargs=True),
            model.register_forward_hook(evictor.after, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class _Evictor:
    """The hooks of one `with evicting(…)`, and what they know between the start and the end of a prefill."""

    def __init__(self, model: PreTrainedModel, method: Method, budget: int, answer_tokens: int) -> None:
        self.model, self.method, self.budget = model, method, budget
        self.answering = Answering(stop_ids(model), answer_tokens)
        self.own_modules = {id(module) for module in model.modules()}
        self.inside = False  # drafts and lookahead passes are forward calls too: they must not evict
        self.watched: Pass | None = None
        self.recorded: dict[PromptRows, Importance] = {}

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before a forward call: a prompt's gets the hooks that record its observers."""
        if self.inside or "lkv_pass" in kwargs:
            return None
        cache: Any = kwargs.get("past_key_values")
        ids = _ids(args, kwargs)
        if cache is not None and cache.get_seq_length() > 0:
            if ids.shape[1] > 1:
                raise UserError(
                    "after an eviction tokens come one at a time here: no chunked prefill, no assisted "
                    "decoding, no second prompt on the same cache"
                )
            return None
        self._prepare(cache, kwargs.get("attention_mask"))
        self.recorded = {row: [] for row in self.method.rows}
        self.watched = Pass(observe=recorder(cache, self.recorded, ids.shape[1]))
        return args, {**kwargs, "lkv_pass": self.watched}

    def _prepare(self, cache: Any, mask: Tensor | None) -> None:
        """Makes a cache's empty layers evictable; refuses what cannot be evicted from."""
        if cache is None:
            raise UserError(
                "there is nothing to evict from: the model was called without a cache (use_cache)"
            )
        if mask is not None and not bool(mask.all()):
            raise UserError(
                "eviction needs prompts without padding; pass one prompt, or prompts of one length"
            )
        if not cache.layers and cache.layer_class_to_replicate is DynamicLayer:  # DynamicCache()
            cache.layers = prompt_cache(self.model.config).layers
        make_evictable(cache)
        if not full_layers(cache):
            raise UserError(
                f"a {type(cache).__name__} has no layer that entries can be dropped from; "
                "let generate() make its own dynamic cache"
            )

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """After a prompt's forward call: its cache drops all but the kept entries."""
        if self.watched is None or kwargs.get("lkv_pass") is not self.watched:
            return
        self.watched = None
        cache, first = kwargs["past_key_values"], out.logits[:, -1].argmax(-1)
        prefilled = Prefilled(self.model, _ids(args, kwargs), cache, first, self.recorded, self.answering)
        self.inside = True
        try:
            with torch.no_grad():
                [selection] = select_entries(prefilled, self.method, [self.budget])
        finally:
            self.inside = False
        compact_in_place(cache, selection.kept)

    def refuse_unwatched(self, module: nn.Module, tokens: int) -> None:
        if tokens > self.budget and id(module) in self.own_modules:
            raise UserError(
                f"a prompt of {tokens} tokens was read without an eviction: the model was called around its "
                "hooks; call model(…) or model.generate(…), not its forward or its parts"
            )


def _ids(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    ids = kwargs.get("input_ids", args[0] if args else None)
    if not isinstance(ids, Tensor):
        raise UserError("eviction needs the prompt as input_ids; inputs_embeds are not supported")
    return ids
