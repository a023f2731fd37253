"""The one registry: every method by name, imported when asked for. Light: no torch.

A method of your own registers from your own package, by an entry point of the group `lkv.methods`:
`mine = "package.module:METHOD"`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal

from lkv.errors import UserError, one_of
from lkv.interface import Method, Needs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lkv.interface import PromptRows, Recipe
    from lkv.lookahead.adapter import LookaheadKV
    from lkv.model.load import Loaded

GROUP = "lkv.methods"
BUILT_IN = {
    "random": "baselines.random:METHOD",
    "streamingllm": "baselines.streamingllm:METHOD",
    "h2o": "baselines.h2o:METHOD",
    "snapkv": "baselines.snapkv:METHOD",
    "pyramidkv": "baselines.pyramidkv:METHOD",
    "laq": "baselines.laq:METHOD",
    "laqpp": "baselines.laq:PLUS_PLUS",
    "speckv": "baselines.speckv:METHOD",
    "lookaheadkv": "lkv.lookahead.method:METHOD",
    "oracle": "baselines.oracle:METHOD",
}
# name: module:attribute of a Method. What is built in cannot be replaced from outside.
METHODS = {entry.name: entry.value for entry in entry_points(group=GROUP)} | BUILT_IN
EXAMPLE = "full snapkv lookaheadkv"  # in the examples of the command line
FULL = "full"  # the full cache: no method, but a row of every table
SELF: Literal["self"] = "self"  # for a draft model: the target drafts for itself
WAYS_OUT = {
    "adapter": "needs its trained modules: give --adapter DIR (lkv train writes one)",
    "draft": "needs a model that drafts: give --draft DIR (lkv model brings one), or --draft self",
}


@cache
def described(name: str) -> Method:
    """The method called `name` as it is registered: what it needs is not given yet."""
    if name not in METHODS:
        raise one_of(
            "method", name, METHODS, "a new one is a file in baselines/ and a line in lkv/registry.py"
        )
    module, _, attribute = METHODS[name].partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"the method {name} cannot be imported from {METHODS[name]}: {error}") from None
    if not isinstance(found, Method):
        raise UserError(f"{METHODS[name]} is a {type(found).__name__}; give an lkv.interface.Method")
    if found.name != name:
        raise UserError(f"{METHODS[name]} calls itself {found.name!r}, and is registered as {name!r}")
    return found


def needing(what: Literal["adapter", "draft"], names: Iterable[str] | None = None) -> list[str]:
    """The methods, of `names` or of all, that need trained modules, or a model that drafts."""
    asked = METHODS if names is None else names
    return [name for name in asked if name in METHODS and described(name).needs == what]


def check_given(name: str, adapter: object, draft: object) -> None:
    """Raises UserError where a method lacks what it needs."""
    needs = described(name).needs if name != FULL else None
    if needs and {"adapter": adapter, "draft": draft}[needs] is None:
        raise UserError(f"{name} {WAYS_OUT[needs]}")


def smallest_budget(name: str) -> int:
    """The smallest budget that the method called `name` can keep to."""
    return described(name).smallest_budget


def get(
    name: str,
    adapter: LookaheadKV | None = None,
    recipe: Recipe | None = None,
    draft: Loaded | Literal["self"] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    extra_rows: PromptRows | None = None,
) -> Method:
    """The method called `name`, ready to run.

    Methods that need trained modules get `adapter`, for ablations with another `recipe` and with `extra_rows`
    that observe too. Those that need a draft get `draft`, a loaded model with the target's `tokenizer`, or
    "self". Raises UserError for an unknown name and for what is missing.
    """
    method = described(name)
    check_given(name, adapter, draft)
    if method.build is None:
        return method
    drafts: Any = None if draft == SELF else draft
    return method.build(Needs(adapter, recipe, extra_rows, drafts, tokenizer))
