"""The words that every method is written in. Imports nothing from the project, and torch for types alone.

A method answers one question, *whose queries look at the prompt's keys?*, with `observers`, and says with a
`Recipe` what happens to the importance that they give. Axes everywhere: B batch, L full-attention layers,
H query heads, K KV heads, G = H / K, R observers, N prompt tokens, M stored keys, C budget, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Importance: TypeAlias = (
    "list[Tensor]"  # a full-attention layer each: float32 [B, H, N], of a Ranking also [B, K, N]
)
Reduction: TypeAlias = Literal["mean", "max"]


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


@dataclass(frozen=True, eq=False, slots=True)
class Attended:
    """What one layer's attention has at hand when its observers are asked.

    query [B, H, Q, D] are the rows of the pass; key and value [B, K, M, D] all that the layer holds, the
    rows' own behind. `scaling` is the factor of their products. lse [B, H, Q] float32 is each row's natural
    log-sum-exp where the attention kernel gave it.
    """

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    lse: Tensor | None = None


@dataclass(frozen=True)
class Answering:
    """How answers are made.

    An answer ends with one of the `stop` tokens, or after `max_tokens`. At a `temperature` above 0 tokens are
    drawn with `seed` (row b of a batch: seed + b), else the likeliest is taken. `banned` tokens cannot come
    first.
    """

    stop: frozenset[int] = frozenset()
    max_tokens: int = 32
    seed: int = 0
    banned: frozenset[int] = frozenset()
    temperature: float = 0.0


GREEDY = Answering()


@dataclass(frozen=True)
class PromptRows:
    """Observers are rows of the prefill pass: the prompt's last `last` tokens, or all of them (None).

    `reduction`, here and below: how the observers' attention becomes one importance.
    """

    last: int | None
    reduction: Reduction = "mean"


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
    padding. `adapter` works on these rows alone.
    """

    tokens: Tensor
    valid: Tensor | None = None
    reduction: Reduction = "mean"
    adapter: Adapter | None = None

    @property
    def rows(self) -> int:
        return int(self.tokens.shape[1])


@dataclass(frozen=True, eq=False)
class Recorded:
    """Observers' queries from a pass of its own: one [B, H, R, D] a layer; they see the prompt whole.

    `scalings` are the factors, one a layer, of their products with keys.
    """

    queries: Sequence[Tensor]
    scalings: Sequence[float]
    valid: Tensor | None = None
    reduction: Reduction = "mean"

    @property
    def rows(self) -> int:
        return int(self.queries[0].shape[2])


@dataclass(frozen=True, eq=False)
class StoredLayer:
    """What a layer holds of a prompt: key and value [B, K, N, D], with their rotary positions."""

    layer: int
    key: Tensor
    value: Tensor
    heads: int  # query heads
    seed: int


@dataclass(frozen=True)
class Ranking:
    """No observers: `rank` gives a layer's importance, float32 [B, H, N], or [B, K, N] for each KV head."""

    rank: Callable[[StoredLayer], Tensor]


Observers: TypeAlias = "PromptRows | Tail | Recorded | Ranking"


class Prompt(Protocol):
    """What a method may see of a prompt that was read: all of it, and a draft on demand.

    ids int64 [B, N]; `layers` are those that are evicted from.
    """

    @property
    def ids(self) -> Tensor: ...
    @property
    def layers(self) -> Sequence[int]: ...
    @property
    def answering(self) -> Answering: ...

    def stored(self, layer: int) -> StoredLayer:
        """Keys and values of a layer."""
        ...

    @property
    def answers(self) -> list[list[int]]:
        """The model's own answers from the full cache, one a prompt of the batch, without stop tokens."""
        ...

    def draft(self, budgets: Sequence[int], tokens: int) -> list[Recorded]:
        """Queries of a greedy draft of `tokens`, one answer a budget.

        The model writes it on a cache that the method's `drafts_on` has evicted to that budget.
        """
        ...

    def after(self, texts: Sequence[Sequence[int]]) -> Tail:
        """Token ids, one list a prompt of the batch, as observers placed after the prompt."""
        ...


@dataclass(frozen=True)
class Needs:
    """What a command gives to methods that need more than the prompt."""

    adapter: Any = None  # trained lookahead modules
    recipe: Recipe | None = None  # in place of the adapter's own, for ablations
    extra_rows: PromptRows | None = None  # prompt rows that observe with the adapter's, for ablations
    draft: Any = None  # a loaded model that drafts; None: the target itself
    tokenizer: Any = None  # the target's


@dataclass(frozen=True)
class Method:
    """One eviction method.

    `observers` is fixed, or a function of the prompt and the budgets that returns one answer a budget (the
    same object for all where the budget does not matter: it then observes once). `extra_rows` are prompt
    rows that observe as well; each counts as much as one of the method's own. `drafts_on` is the method that
    evicts the cache which `Prompt.draft` writes on. `tail_before_prefill(model, ids, answering)` gives a tail
    that is known before the prompt ids [B, N] are read, and so can be part of their prefill (single pass).

    `version` goes up when results change. `identity` names what the method brings along (an adapter's hash),
    so that the journal tells two apart; a function that is not one of a module's own needs one.
    `knows_answer`: the observers are the answer itself, so the choice differs from question to question.

    `needs` says what `build` turns into the method that runs: trained modules, or a model that drafts.
    The last fields are for people: plots, tables and the plan.
    """

    name: str
    recipe: Recipe
    observers: PromptRows | Ranking | Callable[[Prompt, Sequence[int]], Sequence[Tail | Recorded]]
    extra_rows: PromptRows | None = None
    drafts_on: Method | None = None
    version: int = 1
    identity: str = ""
    tail_before_prefill: Callable[[PreTrainedModel, Tensor, Answering], Tail] | None = None
    least_budget: int = 1
    knows_answer: bool = False
    needs: Literal["adapter", "draft"] | None = field(default=None, metadata={"shown": True})
    build: Callable[[Needs], Method] | None = field(default=None, metadata={"shown": True})
    drafted_tokens: int = field(default=0, metadata={"shown": True})  # greedy tokens that a draft costs
    label: str = field(default="", metadata={"shown": True})
    colour: str = field(default="", metadata={"shown": True})
    marker: str = field(default="", metadata={"shown": True})
    line: Any = field(default="-", metadata={"shown": True})
    theory: Callable[..., float | None] | None = field(default=None, metadata={"shown": True})

    def __post_init__(self) -> None:
        for name in ("observers", "tail_before_prefill"):
            given = getattr(self, name)
            if callable(given) and not self.identity and not _named(given):
                raise ValueError(
                    f"method {self.name!r}: {name} is {given!r}, which the journal cannot tell from another; "
                    "use a function of a module, or give the method an identity"
                )
        if not isinstance(self.observers, PromptRows | Ranking) and not callable(self.observers):
            raise ValueError(
                f"method {self.name!r}: observers are {self.observers!r}; "
                "give PromptRows, a Ranking, or a function of the prompt and the budgets"
            )

    @property
    def made_of(self) -> Any:
        """All that can change an answer, as JSON values: for journal keys and provenance.

        Objects go by an `identity` of their own, functions by their names: what these bring along must be in
        the method's `identity`, and a change of theirs in its `version`.
        """
        return _described(self)

    @property
    def rows(self) -> tuple[PromptRows, ...]:
        """What the prefill pass must record for this method."""
        own = (self.observers,) if isinstance(self.observers, PromptRows) else ()
        extra = () if self.extra_rows is None else (self.extra_rows,)
        return (*own, *extra, *(self.drafts_on.rows if self.drafts_on else ()))

    @property
    def smallest_budget(self) -> int:
        """The forced entries must fit, and what the method itself needs (`least_budget`)."""
        drafts = self.drafts_on.smallest_budget if self.drafts_on else 1
        return max(self.least_budget, drafts, self.recipe.window + self.recipe.sinks)


def _named(function: Any) -> bool:
    """Whether a function is one of a module's own, which its name tells from all others."""
    if isinstance(function, partial):
        return _named(function.func)
    name = getattr(function, "__qualname__", "")
    return bool(name) and "<" not in name and getattr(function, "__self__", None) is None


def _described(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, partial):
        return ["partial", _described(value.func), _described(value.args), _described(value.keywords)]
    if is_dataclass(value) and not isinstance(value, type):
        parts = [f.name for f in fields(value) if not f.metadata.get("shown")]
        return [type(value).__name__, {name: _described(getattr(value, name)) for name in parts}]
    if isinstance(value, Mapping):
        return {str(key): _described(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_described(item) for item in value]
    if isinstance(identity := getattr(value, "identity", None), str):
        return [type(value).__name__, identity]
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    raise TypeError(f"a method holds a {type(value).__name__}, which has no name for the journal")
