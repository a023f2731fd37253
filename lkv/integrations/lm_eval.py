"""The door to lm-eval: any of its tasks under any method of the registry, `lm_eval --model lkv`.

Prompts, templates, cuts, stop strings and sampling are those of lm-eval's own HFLM. All that is added is the
eviction between a prompt's prefill and its first new token.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm
from transformers.cache_utils import Cache

from lkv.cache.evictable import entries, full_layers, prompt_cache
from lkv.errors import UserError, one_of
from lkv.eviction.hooks import evicting
from lkv.integrations.lm_eval_plugin import register
from lkv.interface import Method
from lkv.lookahead.adapter import LookaheadKV
from lkv.model.attention import observable
from lkv.model.load import load
from lkv.model.pretrained import WHOLE, refuse_kernels, refuse_tensors
from lkv.model.support import require_evictable
from lkv.registry import FULL, METHODS, SELF, check_given, get
from lkv.results.paths import CARD, MODEL_CARD
from lkv.study.budgets import check_budgets
from lkv.version import __version__

# What HFLM offers and eviction cannot honour: it needs the plain model, whole, on one device.
OWN_LOADERS = ("peft", "delta", "autogptq", "gptqmodel", "subfolder")
REFUSED = ("parallelize", "tp_plan", "peft", "mixed_precision_dtype")


# What a wrong model, device, dtype or keyword of model_args ends in.
UNLOADED = (
    AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


class LKV(HFLM):
    """HFLM whose prompts are evicted by `method` to `budget` entries a layer and KV head.

    Of model_args, `method` is a name of lkv.registry or "full" (HFLM unchanged), `budget` goes with every
    other method, `adapter` (a folder) with methods that need trained modules, `draft` (a folder made by lkv
    model, or "self") with those that need a draft model; the rest is HFLM's own.

    `kept` holds what was stored right after each eviction: entries in each full-attention layer (in each KV
    head the same number), a list a prompt, in the order in which they ran. Continuations of one context share
    its eviction.
    """

    def __init__(
        self,
        pretrained: Any = None,
        method: str = "",
        budget: int | None = None,
        adapter: str | None = None,
        draft: str | None = None,
        batch_size: int | str = 1,
        **settings: Any,
    ) -> None:
        self._model: Any = None
        self.method: Method | None = None
        self.kept: list[list[int]] = []
        if settings.pop("trust_remote_code", False):
            raise UserError("a model's own code is never run; leave trust_remote_code out of model_args")
        if not pretrained:
            raise UserError("no model is given; add pretrained=FOLDER to model_args")
        if method != FULL:
            self.budget = _checked(method, budget, adapter, draft, batch_size, settings)
        self._load(pretrained, batch_size, settings)
        if method != FULL:
            require_evictable(self.model)
            self.method = self._made(method, adapter, draft)

    @classmethod
    def create_from_arg_string(cls, *given: Any, **named: Any) -> LKV:
        """What lm-eval calls with model_args: from here on a user's error ends its command in one line."""
        _end_in_one_line()
        made: LKV = super().create_from_arg_string(*given, **named)
        return made

    @classmethod
    def create_from_arg_obj(cls, *given: Any, **named: Any) -> LKV:
        _end_in_one_line()
        made: LKV = super().create_from_arg_obj(*given, **named)
        return made

    def _load(self, pretrained: Any, batch_size: int | str, settings: dict[str, Any]) -> None:
        """HFLM's own start; what model_args can be wrong about ends it in one line."""
        try:
            super().__init__(pretrained, batch_size=batch_size, **settings)
        except UNLOADED as error:
            why = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
            named = pretrained if isinstance(pretrained, str) else type(pretrained).__name__
            raise UserError(f"lm-eval cannot load {named}: {why}; correct model_args") from error

    def _create_model(self, pretrained: str, *args: Any, **settings: Any) -> None:
        """HFLM's, from safetensors that hold every tensor. What it adds to or quantises itself, it checks."""
        if any(settings.get(name) for name in OWN_LOADERS):
            return super()._create_model(pretrained, *args, **settings)
        refuse_kernels(pretrained, revision=settings.get("revision"), gguf_file=settings.get("gguf_file"))
        super()._create_model(pretrained, *args, **settings, **WHOLE)
        self._model, facts = self._model
        refuse_tensors(facts, pretrained, "get it again, or take another model")

    def _made(self, name: str, adapter: str | None, draft: str | None) -> Method:
        drafting: Any = draft
        if draft is not None and draft != SELF:
            drafting = load(draft, self.device, str(self.model.dtype).removeprefix("torch."))
        lookahead = LookaheadKV.from_pretrained(adapter, self.model) if adapter else None
        return get(name, lookahead, draft=drafting, tokenizer=self.tokenizer)

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **settings: Any) -> Tensor:
        if self.method is None:
            return super()._model_generate(context, max_length, stop, **settings)
        if settings.get("num_beams", 1) != 1:
            raise UserError("eviction goes with greedy decoding and sampling; give --gen_kwargs num_beams=1")
        settings = {"cache_implementation": "dynamic"} | settings  # some models' own default is static
        with evicting(self.model, self.method, self.budget, max_length - context.shape[1]):
            out = super()._model_generate(context, max_length, stop, return_dict_in_generate=True, **settings)
        fed = out.sequences.shape[1] - context.shape[1] - 1  # the last new token is never fed
        self.kept.append([stored - fed for stored in _stored(out.past_key_values)])
        return out.sequences

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **settings: Any
    ) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy) of each (name, context, continuation); contexts are evicted.

        A continuation's first token is predicted by the prefill, so it sees the whole context.
        """
        if self.method is None:
            return super()._loglikelihood_tokens(requests, disable_tqdm, **settings)
        members: dict[tuple[int, ...], list[int]] = {}
        for i, (_, context, continuation) in enumerate(requests):
            whole = (context + continuation)[-(self.max_length + 1) :]  # HFLM's cut, on the left
            members.setdefault(tuple(whole[: -len(continuation)]), []).append(i)
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        with observable(self.model):
            for cut, sharing in tqdm(members.items(), "Running contexts", disable=disable_tqdm):
                first, cache = self._evicted(cut)
                for i in sharing:
                    name, _, continuation = requests[i]
                    found[i] = self._score(first, cache, continuation)
                    if name is not None:
                        self.cache_hook.add_partial("loglikelihood", name, found[i])
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        if self.method is not None:
            raise UserError(
                "the perplexity of a whole text has no prompt to evict from; use method=full for such tasks"
            )
        return super().loglikelihood_rolling(requests, disable_tqdm)

    def _evicted(self, context: tuple[int, ...]) -> tuple[Tensor, Cache]:
        """The logits [1, 1, vocabulary] after a context, and its cache after the eviction."""
        assert self.method is not None
        cache = prompt_cache(self.model.config)
        ids = torch.tensor([context], device=self.device)
        with evicting(self.model, self.method, self.budget):
            out = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        self.kept.append(_stored(cache))
        return out.logits, cache

    def _score(self, first: Tensor, cache: Cache, continuation: list[int]) -> tuple[float, bool]:
        tokens = torch.tensor([continuation], device=self.device)
        logits = first
        if len(continuation) > 1:
            branch = copy.copy(cache)  # layers concatenate into new tensors: the original stays as it is
            branch.layers = [copy.copy(layer) for layer in cache.layers]
            rest = self.model(input_ids=tokens[:, :-1], past_key_values=branch, use_cache=True).logits
            logits = torch.cat([first, rest], 1)
        scores = F.log_softmax(logits, dim=-1, dtype=self.softmax_dtype)
        total = scores.gather(2, tokens[..., None]).sum()
        return float(total), bool((scores.argmax(-1) == tokens).all())

    def get_model_info(self) -> dict[str, Any]:
        """HFLM's, and under "lkv" what lm-eval's results file says of the eviction; `kept` is the mean."""
        info: dict[str, Any] = super().get_model_info()
        ours: dict[str, Any] = {"version": __version__, "method": FULL}
        if self.method is not None:
            ours |= {
                "method": self.method.name,
                "method_version": self.method.version,
                "identity": self.method.identity,
                "budget": self.budget,
                "prompts": len(self.kept),
                "kept": [sum(layer) / len(layer) for layer in zip(*self.kept, strict=True)],
            }
        return info | {"lkv": ours}


def _checked(
    method: str,
    budget: int | None,
    adapter: str | None,
    draft: str | None,
    batch_size: int | str,
    settings: dict[str, Any],
) -> int:
    """The budget, if model_args make sense for a method: known before the model is loaded."""
    if method not in METHODS:
        raise one_of("method", method, [FULL, *METHODS], "add method=NAME to model_args")
    if not isinstance(budget, int) or isinstance(budget, bool):
        raise UserError(f"method={method} needs a budget, got {budget!r}; add budget=128 to model_args")
    check_budgets([budget], [method], "budget")
    if str(batch_size) != "1":
        raise UserError(
            f"eviction takes one prompt at a time, got batch_size {batch_size}; give --batch_size 1"
        )
    if refused := [name for name in REFUSED if settings.get(name)]:
        raise UserError(f"eviction does not go with {', '.join(refused)}; leave it out of model_args")
    check_given(method, adapter, draft)
    for folder, card in ((adapter, CARD), (None if draft == SELF else draft, MODEL_CARD)):
        if folder is not None and not Path(str(folder), card).is_file():
            raise UserError(f"no such file: {Path(str(folder), card)}; correct the folder in model_args")
    return budget


def _end_in_one_line() -> None:
    if getattr(sys.excepthook, "func", None) is not _end:
        sys.excepthook = partial(_end, sys.excepthook)


def _end(previous: Callable[..., Any], kind: type, error: BaseException, trace: Any) -> None:
    """sys.excepthook: a user's error that nobody caught is one line and exit code 2, as of `lkv`."""
    if not issubclass(kind, UserError):
        previous(kind, error, trace)
        return
    print(f"lkv: error: {error}", file=sys.stderr)
    raise SystemExit(2)


def _stored(cache: Cache) -> list[int]:
    return [entries(cache, layer)[0].shape[2] for layer in full_layers(cache)]


register()  # for programs that import this module themselves
