"""observe: the importance of a prompt's entries by one kind of observers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lkv.cache.evictable import entries, full_layers
from lkv.eviction import second_pass
from lkv.eviction.importance import ObserverInputs, importance
from lkv.eviction.prefill import observe_tail
from lkv.eviction.prefilled import Prefilled
from lkv.interface import Importance, Observers, PromptRows, Ranking, Recorded, StoredLayer, Tail


@torch.no_grad()
def importance_by(
    prefilled: Prefilled, observers: Observers, extra_rows: PromptRows | None = None
) -> Importance:
    """What the observers give, one tensor a full-attention layer; `extra_rows` observe with them."""
    if isinstance(observers, PromptRows):
        return prefilled.recorded[observers]
    if isinstance(observers, Ranking):
        return [observers.rank(stored_layer(prefilled, i)) for i in full_layers(prefilled.cache)]
    if isinstance(observers, Tail):
        captured = second_pass.can_observe(prefilled, observers)
        own = (second_pass.observe_tail if captured else observe_tail)(prefilled, observers)
    else:
        own = _by_recorded_queries(prefilled, observers)
    if extra_rows is None:
        return own
    pairs = zip(own, prefilled.recorded[extra_rows], strict=True)
    return [combined(observers, extra_rows, mine, theirs, prefilled.length) for mine, theirs in pairs]


def stored_layer(prefilled: Prefilled, layer: int) -> StoredLayer:
    key, value = entries(prefilled.cache, layer)
    heads = prefilled.model.config.get_text_config().num_attention_heads
    return StoredLayer(layer, key, value, heads, prefilled.answering.seed)


def _by_recorded_queries(prefilled: Prefilled, observers: Recorded) -> Importance:
    # No causal offset: a draft's queries see every prompt key, however early in the draft they stand.
    return [
        importance(
            ObserverInputs(
                observers.queries[i],
                entries(prefilled.cache, i)[0],
                observers.scalings[i],
                prefilled.stored(i),
                reduction=observers.reduction,
                valid=observers.valid,
            )
        )
        for i in full_layers(prefilled.cache)
    ]


def combined(
    observers: Tail | Recorded, extra_rows: PromptRows, own: Tensor, extra: Tensor, length: int
) -> Tensor:
    """One importance [B, H, N] of two: the larger, or the mean weighted by the number of observers."""
    assert observers.reduction == extra_rows.reduction, "one reduction over all observers"
    if observers.reduction == "max":
        return torch.maximum(own, extra)
    rows = min(extra_rows.last or length, length)
    counted = own.new_full((own.shape[0],), observers.rows)
    if observers.valid is not None:
        counted = observers.valid.sum(1)
    share = (counted / (counted + rows))[:, None, None]
    return share * own + (1 - share) * extra


def require_rows(recorded: Sequence[PromptRows], wanted: Sequence[PromptRows], method: str) -> None:
    """Raises ValueError where the prefill did not record what a method's observers need."""
    if missing := [row for row in wanted if row not in recorded]:
        raise ValueError(
            f"{method} needs {missing} recorded during the prefill, which recorded {list(recorded)}; "
            "give prefill the rows of every method that follows (Method.rows)"
        )
