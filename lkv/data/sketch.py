"""A prompt before it has its length: facts, and how they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    pass


class Fact(NamedTuple):
    """What can be asked of an item: `ask` is told the key; the answer is as the item writes it."""

    key: Any
    answer: str | None = None  # None: the question has no one right answer


Items = Iterator[tuple[str, Fact | None]]  # text of one item, and its fact (None: not asked about)


@dataclass(frozen=True)
class Sketch:
    """A prompt before it is sized: `items` make up the body; `ask` words the question about some of them."""

    head: str
    items: Items
    ask: Callable[[list[Any]], str]
    documents: list[str] = field(default_factory=list)  # SHA-256 of the documents used
    first_alone: bool = False  # `ask` words the first of its keys only
    begin: Callable[[Any], str] | None = None  # of the first key: how the answer begins, inside the prompt
