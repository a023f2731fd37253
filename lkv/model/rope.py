"""Rotary positions that depend on a sequence's length, and how long a sequence may be.

Dynamic NTK and LongRoPE choose their frequencies by the longest position that a pass holds. So tokens after
a prompt change the rotation of the prompt itself when they share its pass, and rows of unequal positions that
of each other when they share a step. transformers also keeps dynamic NTK's frequencies from pass to pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

# Types that were made to read beyond the context that a model was first trained with.
EXTENDING = ("dynamic", "yarn", "longrope", "llama3")


def _parameters(config: PretrainedConfig) -> list[Mapping[str, Any]]:
    """The RoPE parameters of all layers: one mapping, or one a type of layer."""
    found = getattr(config.get_text_config(), "rope_parameters", None) or {}
    nested = [value for value in found.values() if isinstance(value, Mapping)]
    return nested or [found]


def length_dependent(model: PreTrainedModel) -> bool:
    """Whether the rotation of a token depends on how long its sequence is."""
    kinds = [str(parameters.get("rope_type", "")) for parameters in _parameters(model.config)]
    return any("dynamic" in kind or kind == "longrope" for kind in kinds)


def context(config: PretrainedConfig) -> int | None:
    """How many tokens a model reads, prompt and answer together; None where its config does not say.

    `max_position_embeddings`, or what a RoPE type extends it to (`factor` times the first context).
    """
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is None:
        return None
    for parameters in _parameters(config):
        first = parameters.get("original_max_position_embeddings")
        if first is None and "dynamic" in str(parameters.get("rope_type")):
            first = limit
        if first is not None and parameters.get("rope_type") in EXTENDING:
            limit = max(limit, int(first * (parameters.get("factor") or 1)))
    return int(limit)


@contextmanager
def unscaled(model: PreTrainedModel) -> Iterator[None]:
    """Inside, a pass starts from the frequencies of short sequences, and what it leaves behind is undone: its
    rotation depends on its own positions alone, not on what was read before."""
    if not length_dependent(model):
        yield
        return
    rotaries = [module for module in model.base_model.modules() if _prefixes(module)]
    before = [(dict(vars(module)), dict(module._buffers)) for module in rotaries]
    for module in rotaries:
        for prefix in _prefixes(module):
            first = getattr(module, f"{prefix}original_inv_freq")
            now = getattr(module, f"{prefix}inv_freq")
            module._buffers[f"{prefix}inv_freq"] = first.clone().to(now.device)
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
    try:
        yield
    finally:
        for module, (state, buffers) in zip(rotaries, before, strict=True):
            vars(module).update(state)
            module._buffers.clear()
            module._buffers.update(buffers)


def _prefixes(module: nn.Module) -> list[str]:
    """Of a rotary embedding's frequencies: "", or one a type of layer; none for other modules."""
    end = "original_inv_freq"
    return [name.removesuffix(end) for name in (*vars(module), *module._buffers) if name.endswith(end)]
