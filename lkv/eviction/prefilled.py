"""A prompt that was read: its cache, and the first token of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from lkv.cache.evictable import entries, full_layers
from lkv.errors import UserError
from lkv.eviction.sampling import drawn
from lkv.interface import GREEDY, Answering, Importance, PromptRows
from lkv.model.forward import logits
from lkv.model.rope import context
from lkv.model.support import require_drawable


@dataclass(eq=False)
class Prefilled:
    """A prompt after its prefill: ids [B, N], the full cache, each row's first answer token, int64 [B].

    `recorded` holds the importance that prompt rows gave as the prefill went, `scores` the candidates' scores
    [B, K, N'] a layer where one method's observers were part of the pass. `answering` says how answers are
    made, `answers` the model's own from the full cache where they are known. `question` [B, n] is fed between
    this prompt and its answer, and is no part of what is evicted.

    After `extend` the cache stores fewer entries than the prompt has tokens; importance is over the stored.
    """

    model: PreTrainedModel
    ids: Tensor
    cache: Cache
    first: Tensor
    recorded: dict[PromptRows, Importance]
    answering: Answering = GREEDY
    question: Tensor | None = None
    answers: list[list[int]] | None = None
    scores: Sequence[Tensor] | None = None

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


def check_room(model: PreTrainedModel, length: int, answering: Answering) -> None:
    """Raises UserError where the prompt and its answer are longer than the model's context."""
    limit = context(model.config)
    if limit is not None and length + answering.max_tokens > limit:
        raise UserError(
            f"the prompt has {length} tokens and its answer up to {answering.max_tokens}, "
            f"{model.config.model_type}'s context is {limit}; shorten the prompt or the answer, "
            "or use a model with a longer context"
        )


def first_tokens(
    model: PreTrainedModel, last: Tensor, positions: Tensor, answering: Answering, seeds: Sequence[int] = ()
) -> Tensor:
    """First token of each row, int64 [B], from the final states [B, hidden] of its last token.

    `seeds`, one a row, count before those of `answering`.
    """
    scored = logits(model, last)
    if answering.banned:
        banned = torch.tensor(sorted(answering.banned), device=scored.device)
        scored = scored.index_fill(-1, banned, float("-inf"))
    if answering.temperature == 0:  # without the seeds' copy to the device, which a capture does not allow
        return scored.argmax(-1)
    require_drawable(model)
    own = seeds or [answering.seed + b for b in range(len(last))]
    return drawn(scored, answering.temperature, torch.tensor(own, device=scored.device), positions)
