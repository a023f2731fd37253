"""Models: brought to a local folder once (`obtain`), then loaded from there (`load`). No hub at run time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lkv.cache.evictable import full_layers, prompt_cache
from lkv.model.attention import BACKEND_NAMES, best_backend
from lkv.model.card import AGAIN, check_files, identity, read_card
from lkv.model.dtype import choose_dtype
from lkv.model.pretrained import loading, read_model
from lkv.model.rope import context
from lkv.model.support import require_evictable
from lkv.model.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Loaded:
    """A model ready to be observed: evaluation mode, frozen, attention through lkv.model.attention.

    `fingerprint` changes with the weights, the configuration, the tokenizer and the chat template.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: str
    stop: frozenset[int]

    @property
    def backend(self) -> str:
        return BACKEND_NAMES[self.model.config._attn_implementation]

    @property
    def dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def context(self) -> int | None:
        """Tokens that the model reads: prompt, template and answer."""
        return context(self.model.config)

    @property
    def layers(self) -> int:
        return layer_counts(self.model)[0]

    @property
    def full_layers(self) -> int:
        """Layers that see the whole prompt: those that are evicted from."""
        return layer_counts(self.model)[1]

    @property
    def note(self) -> str:
        """What a table of this model must say; empty where every layer is evicted from."""
        whole = self.layers - self.full_layers
        return f"{whole} of {self.layers} layers have a sliding window and stay whole" if whole else ""


def layer_counts(model: PreTrainedModel) -> tuple[int, int]:
    """(all, those with full attention)."""
    cache = prompt_cache(model.config)
    return len(cache.layers), len(full_layers(cache))


def load(folder: str | Path, device: torch.device, dtype: str = "auto") -> Loaded:
    """Loads models/NAME as `lkv model` wrote it. dtype auto: bfloat16 where the device computes in it."""
    folder = Path(folder)
    card = read_card(folder)
    check_files(folder, card)
    chosen = choose_dtype(dtype, device)
    with loading(str(folder), AGAIN):
        model = read_model(folder, str(folder), AGAIN, dtype=chosen, local_files_only=True)
    tokenizer = load_tokenizer(folder)
    model.eval().requires_grad_(False)
    torch.nn.Module.to(model, device)  # transformers' own `to` hides its arguments from the type checker
    model.set_attn_implementation(best_backend(device, chosen))
    require_evictable(model)
    return Loaded(model, tokenizer, card["name"], identity(folder, card), stop_ids(model, tokenizer))


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> frozenset[int]:
    """End-of-answer tokens, from the generation config and the tokenizer."""
    generation = getattr(model, "generation_config", None)
    ids = getattr(generation, "eos_token_id", None)
    found = set(ids if isinstance(ids, list) else [ids])
    if tokenizer is not None:
        found.add(tokenizer.eos_token_id)
    return frozenset(i for i in found if i is not None)
