"""The one registry: every method by name, imported when asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from lkv.errors import UserError, one_of

if TYPE_CHECKING:
    from lkv.interface import Method, Recipe
    from lkv.lookahead import LookaheadKV

# name: module:attribute. The attribute is a Method; LookaheadKV's comes from its adapter instead.
METHODS = {
    "random": "baselines.random:METHOD",
    "streamingllm": "baselines.streamingllm:METHOD",
    "h2o": "baselines.h2o:METHOD",
    "snapkv": "baselines.snapkv:METHOD",
    "pyramidkv": "baselines.pyramidkv:METHOD",
    "laq": "baselines.laq:METHOD",
    "laqpp": "baselines.laq:PLUS_PLUS",
    "lookaheadkv": "lkv.lookahead:LookaheadKV",
    "oracle": "baselines.oracle:METHOD",
}
FULL = "full"  # the full cache: no method, but a row of every table


def get(name: str, adapter: LookaheadKV | None = None, recipe: Recipe | None = None) -> Method:
    """The method called `name`; `adapter` is needed, and `recipe` used, by lookaheadkv alone."""
    if name not in METHODS:
        raise one_of(
            "method", name, METHODS, "a new one is a file in baselines/ and a line in lkv/registry.py"
        )
    if name == "lookaheadkv":
        if adapter is None:
            raise UserError(
                "lookaheadkv needs its trained modules: give --adapter DIR (lkv train writes one)"
            )
        return adapter.method(recipe) if recipe else adapter.method()
    module, attribute = METHODS[name].split(":")
    method: Method = getattr(import_module(module), attribute)
    return method
