"""The words every method is written in. Imports nothing from the project.

A method answers one question, *whose queries look at the prompt's keys?*, with `observers`, and says with a
`Recipe` what happens to what they saw. Axes everywhere: B batch, L full-attention layers, H query heads,
K KV heads, G = H / K, R observers, N prompt tokens, M stored keys, C budget, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from lkv.eviction.prefilled import Prefilled

Importance: TypeAlias = "list[Tensor]"  # one [B, H, N] float32 a full-attention layer


Over: TypeAlias = Literal["mean", "max"]


@dataclass(frozen=True)
class Recipe:
    """From importance to kept entries. `window` and `sinks` are inside the budget."""

    pool: Literal["max", "avg"] | None = "max"
    kernel: int = 7
    group: Literal["mean", "max"] = "mean"  # over the query heads of a KV head
    order: Literal["group_pool", "pool_group"] = "group_pool"  # with max-pool the two do not commute
    window: int = 0  # most recent prompt tokens, always kept
    sinks: int = 0  # first prompt tokens, always kept
    schedule: Literal["uniform", "pyramid"] = "uniform"  # budget over layers


@dataclass(frozen=True)
class PromptRows:
    """Observers are rows of the prefill pass: the prompt's last `last` tokens, or all of them (None).

    `over`, here and below: how what the observers see is put together.
    """

    last: int | None
    over: Over = "mean"


class Adapter(Protocol):
    """What works on the last rows of a pass alone: LoRA, for one."""

    def add(
        self, model: PreTrainedModel, layer: int, names: Sequence[str], inputs: Tensor, outs: list[Tensor]
    ) -> list[Tensor]:
        """The outputs [B, Q, out] of linears `names` of a block, which share `inputs`, with its part added.

        In place where no gradient is needed.
        """
        ...

    def hooked(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """Inside, the model's own forward pass has the adapter's part added."""
        ...


@dataclass(frozen=True, eq=False)
class Tail:
    """Observers are tokens placed after the prompt, at positions N, N+1, …; they see it whole.

    `tokens` holds ids [B, R] (int64) or embeddings [B, R, hidden]; rows where `valid` [B, R] is False are
    padding. `adapter` works on these rows alone. `beside` names prompt rows that look as well (see Recorded).
    """

    tokens: Tensor
    valid: Tensor | None = None
    over: Over = "mean"
    adapter: Adapter | None = None
    beside: PromptRows | None = None

    @property
    def rows(self) -> int:
        return int(self.tokens.shape[1])


@dataclass(frozen=True, eq=False)
class Recorded:
    """Observers' queries from a pass of its own: one [B, H, R, D] a layer; they see the prompt whole.

    `scalings` are the factors, one a layer, of their products with keys.
    `beside` names prompt rows that look as well, put together in the same way (`over`), each row counting as
    much as a recorded one.
    """

    queries: Sequence[Tensor]
    scalings: Sequence[float]
    valid: Tensor | None = None
    over: Over = "mean"
    beside: PromptRows | None = None

    @property
    def rows(self) -> int:
        return int(self.queries[0].shape[2])


@dataclass(frozen=True)
class Ranking:
    """Nobody looks: `rank(batch, heads, prompt, layer, seed, device)` gives the importance [B, H, N]."""

    rank: Callable[[int, int, int, int, int, torch.device], Tensor]


Observers: TypeAlias = "PromptRows | Tail | Recorded | Ranking"


@dataclass(frozen=True)
class Method:
    """One eviction method.

    `observers` is fixed, or a function of the prefilled prompt and the budgets that gives one answer a
    budget (the same object for all where the budget does not matter; it is then looked at once). Such a
    function may use what `reads` had the prefill pass record. `version` goes up when results change;
    `identity` names what the method brings along (an adapter's hash), so that the journal tells two apart.
    `knows_answer`: the observers are the answer itself, so the choice differs from question to question.
    `ahead(model, ids, settings)` gives a tail that is known before the prompt ids [B, N] are read, and so can
    ride along in their prefill (single pass); `settings` are those of the prefill.
    """

    name: str
    recipe: Recipe
    observers: PromptRows | Ranking | Callable[[Prefilled, Sequence[int]], Sequence[Tail | Recorded]]
    reads: tuple[PromptRows, ...] = ()
    version: int = 1
    identity: str = ""
    ahead: Callable[[PreTrainedModel, Tensor, Mapping[str, Any]], Tail] | None = None
    least_budget: int = 1
    knows_answer: bool = False

    @property
    def made_of(self) -> Any:
        """All that can change an answer, as JSON values: for journal keys.

        Objects go by an `identity` of their own, functions by their names: what these bring along must be in
        the method's `identity`, and a change of theirs in its `version`.
        """
        return _described(self)

    @property
    def rows(self) -> tuple[PromptRows, ...]:
        """What the prefill pass must record for this method."""
        return (self.observers,) if isinstance(self.observers, PromptRows) else self.reads

    @property
    def smallest_budget(self) -> int:
        """The forced entries must fit, and what the method itself needs (`least_budget`)."""
        return max(self.least_budget, self.recipe.window + self.recipe.sinks)


def _described(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, partial):
        return ["partial", _described(value.func), _described(value.args), _described(value.keywords)]
    if is_dataclass(value) and not isinstance(value, type):
        return [type(value).__name__, {f.name: _described(getattr(value, f.name)) for f in fields(value)}]
    if isinstance(value, Mapping):
        return {str(key): _described(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_described(item) for item in value]
    if isinstance(identity := getattr(value, "identity", None), str):
        return [type(value).__name__, identity]
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    raise TypeError(f"a method holds a {type(value).__name__}, which has no name for the journal")
