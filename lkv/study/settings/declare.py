"""How a key of a config is declared: kind and default in its annotation, bounds and meaning here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, replace
from functools import cache
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

NAME = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,199}$"
LOWER_CASE = r"^[a-z0-9][a-z0-9_.-]*$"
LOWER_CASE_WORDS = "lower-case letters, digits, '_', '.', '-'"
LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Key:
    """What a key means, and what it may hold beyond its kind."""

    help: str = ""  # for the schema, config/README.md and --help; a section's is its docstring
    null: str = ""  # what null stands for
    least: int | None = None  # of a number, or of each number of a list
    most: int | None = None
    positive: bool = False  # a number above 0
    odd: bool = False
    few: bool = False  # the command line takes 10,000 at most: so many must fit into memory at once
    pattern: str = ""  # of a text, or of each text of a list
    items: str = ""  # what the entries of a list are, in the plural
    item: str = ""  # what one entry of a list, or the value of a mapping, is
    distinct: bool = False  # no entry may be given twice
    some: bool = False  # a list, mapping or text is not empty
    optional: bool = False  # may be left out; it has no default then
    names: str = NAME  # pattern of a mapping's keys
    parts: tuple[type, ...] = ()  # each value of a mapping holds keys of these sections
    without: tuple[str, ...] = ()  # but not these


def key(help: str = "", *, default: Any = MISSING, **rules: Any) -> Any:
    """A dataclass field for one key of a config; without a default it is required."""
    metadata = {"key": Key(help, **rules)}
    if rules.get("optional"):
        return field(default=None, metadata=metadata)
    if isinstance(default, (list, dict, type)):
        made = default if isinstance(default, type) else default.copy
        return field(default_factory=made, metadata=metadata)
    return field(default=default, metadata=metadata)


def own_budgets(more: str = "") -> Any:
    """A section's budgets in place of the study's."""
    return key(
        f"entries kept per layer and KV head, for this section alone{more}",
        default=None,
        null="the study's budgets",
        least=1,
        distinct=True,
        some=True,
    )


def first_samples(default: int | None = None) -> Any:
    null = "all" if default is None else ""
    return key("the first so many samples of each task", default=default, null=null, least=1)


class Declared(NamedTuple):
    """One key of a section: its name, the kinds of value that it takes, and its rules."""

    name: str
    kinds: tuple[Any, ...]  # int, float, str, bool, Literal[...], list[...], dict[...] or a section
    nullable: bool
    default: Any  # MISSING where there is none
    key: Key

    @property
    def required(self) -> bool:
        return self.default is MISSING and not self.key.optional

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed words of a key that takes one of a few."""
        kinds = [get_args(kind)[0] if get_origin(kind) is list else kind for kind in self.kinds]
        return next((get_args(kind) for kind in kinds if get_origin(kind) is Literal), ())


@cache
def declared(section: type) -> Mapping[str, Declared]:
    """The keys of a section, in their order."""
    hints = get_type_hints(section)
    return {entry.name: _declared(entry, hints[entry.name]) for entry in dataclasses.fields(section)}


def _declared(entry: dataclasses.Field[Any], hint: Any) -> Declared:
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    rules: Key = entry.metadata["key"]
    if not rules.help:
        rules = replace(rules, help=str(kinds[0].__doc__))
    default = entry.default
    if rules.optional:
        default = MISSING
    elif entry.default_factory is not MISSING:
        made = entry.default_factory()
        default = {} if dataclasses.is_dataclass(made) else made
    rest = tuple(kind for kind in kinds if kind is not type(None))
    return Declared(entry.name, rest, len(rest) < len(kinds) and not rules.optional, default, rules)
