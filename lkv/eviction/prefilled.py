"""A prompt that was read: its cache, its last hidden states, its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from lkv.cache.evictable import entries, full_layers
from lkv.errors import UserError
from lkv.eviction.sampling import drawn
from lkv.interface import Importance, PromptRows
from lkv.model.forward import logits
from lkv.model.rope import context
from lkv.model.support import require_drawable


@dataclass(eq=False)
class Prefilled:
    """A prompt after its prefill: ids [B, N], the full cache, each row's first answer token, int64 [B].

    `seen` holds the importance that the prefill pass itself recorded. `answer_tokens` is how long the model's
    own answer may get (the oracle's observers), `seed` feeds what draws at random: methods, and answers at a
    `temperature` above 0. `banned` tokens cannot come first in an answer. `question` [B, n] is fed between
    this prompt and its answer, and is no part of what is evicted.

    After `extend` the cache stores fewer entries than the prompt has tokens; importance is over the stored.
    """

    model: PreTrainedModel
    ids: Tensor
    cache: Cache
    first: Tensor
    seen: dict[PromptRows, Importance]
    stop: frozenset[int] = frozenset()
    answer_tokens: int = 32
    seed: int = 0
    banned: frozenset[int] = frozenset()
    temperature: float = 0.0
    question: Tensor | None = None
    _answers: list[list[int]] | None = field(default=None, repr=False)

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    @property
    def full_layers(self) -> list[int]:
        """Layers that are evicted from."""
        return full_layers(self.cache)

    @property
    def kv_heads(self) -> int:
        return entries(self.cache, self.full_layers[0])[0].shape[1]

    def stored(self, layer: int) -> int:
        """Entries that a layer holds."""
        return entries(self.cache, layer)[0].shape[2]

    @property
    def answers(self) -> list[list[int]]:
        """The model's own answers from the full cache, without their stop token."""
        if self._answers is None:
            from lkv.eviction.compact import compact
            from lkv.eviction.decode import decode
            from lkv.eviction.extend import extend

            asked = self if self.question is None else extend(self, None, self.question)
            self._answers = decode(self.model, compact(asked, None), self.answer_tokens, self.stop).tokens
        return self._answers

    @answers.setter
    def answers(self, known: list[list[int]]) -> None:
        self._answers = known


def check_room(model: PreTrainedModel, length: int, settings: dict[str, Any]) -> None:
    limit = context(model.config)
    answer = settings.get("answer_tokens", Prefilled.answer_tokens)
    if limit is not None and length + answer > limit:
        raise UserError(
            f"the prompt has {length} tokens and its answer up to {answer}, {model.config.model_type}'s "
            f"context is {limit}; shorten the prompt or the answer, or use a model with a longer context"
        )


def first_tokens(
    model: PreTrainedModel,
    last: Tensor,
    positions: Tensor,
    seeds: Sequence[int],
    banned: frozenset[int] = frozenset(),
    temperature: float = 0.0,
) -> Tensor:
    """First token of each row, int64 [B], from the final states [B, hidden] of its last token."""
    scored = logits(model, last)
    if banned:
        scored = scored.index_fill(-1, torch.tensor(sorted(banned), device=scored.device), float("-inf"))
    if temperature == 0:  # without the seeds' copy to the device, which a capture does not allow
        return scored.argmax(-1)
    require_drawable(model)
    return drawn(scored, temperature, torch.tensor(seeds, device=scored.device), positions)


def drawing_settings(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: settings[key] for key in ("banned", "temperature") if key in settings}


def row_seeds(seed: int, rows: int) -> list[int]:
    """Of the rows of a batch, each its own."""
    return [seed + b for b in range(rows)]
