"""The one registry: every method by name, imported when asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from lkv.errors import UserError, one_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lkv.interface import Method, PromptRows, Recipe
    from lkv.lookahead.adapter import LookaheadKV
    from lkv.model.load import Loaded

# name: module:attribute. The attribute is a Method, but for LookaheadKV (its adapter makes it) and SpecKV (a
# function of its draft model).
METHODS = {
    "random": "baselines.random:METHOD",
    "streamingllm": "baselines.streamingllm:METHOD",
    "h2o": "baselines.h2o:METHOD",
    "snapkv": "baselines.snapkv:METHOD",
    "pyramidkv": "baselines.pyramidkv:METHOD",
    "laq": "baselines.laq:METHOD",
    "laqpp": "baselines.laq:PLUS_PLUS",
    "speckv": "baselines.speckv:method",
    "lookaheadkv": "lkv.lookahead.adapter:LookaheadKV",
    "oracle": "baselines.oracle:METHOD",
}
# The smallest budgets, which a method's module says as well, but that needs torch; the others': 1.
SMALLEST = {"streamingllm": 4} | dict.fromkeys(("h2o", "snapkv", "pyramidkv", "laq", "laqpp", "speckv"), 32)
FULL = "full"  # the full cache: no method, but a row of every table
SELF: Literal["self"] = "self"  # for a draft model: the target drafts for itself


def check_given(name: str, adapter: object, draft: object) -> None:
    """LookaheadKV goes with an adapter, SpecKV with a draft model."""
    if name == "lookaheadkv" and adapter is None:
        raise UserError("lookaheadkv needs its trained modules: give --adapter DIR (lkv train writes one)")
    if name == "speckv" and draft is None:
        raise UserError(
            "speckv needs a model that drafts: give --draft DIR (lkv model brings one), or --draft self"
        )


def smallest_budget(name: str) -> int:
    """The smallest budget that the method called `name` can keep to."""
    return SMALLEST.get(name, 1)


def get(
    name: str,
    adapter: LookaheadKV | None = None,
    recipe: Recipe | None = None,
    draft: Loaded | Literal["self"] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    beside: PromptRows | None = None,
) -> Method:
    """The method called `name`.

    `adapter` is needed, and `recipe` and `beside` (prompt rows that look as well) used, by lookaheadkv alone;
    by speckv alone `draft`, a loaded model with the target's `tokenizer`, or "self".
    """
    if name not in METHODS:
        raise one_of(
            "method", name, METHODS, "a new one is a file in baselines/ and a line in lkv/registry.py"
        )
    check_given(name, adapter, draft)
    if name == "lookaheadkv":
        assert adapter is not None
        return adapter.method(recipe, beside)
    module, attribute = METHODS[name].split(":")
    found: Any = getattr(import_module(module), attribute)
    if name == "speckv":
        found = found(None if draft == SELF else draft, tokenizer)
    method: Method = found
    return method
