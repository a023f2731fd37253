"""The JSON schema of a study's config, made from the declared keys."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin

from lkv.study.settings.declare import MISSING, Declared, Key, declared
from lkv.study.settings.study import Study

TYPES = {int: "integer", float: "number", str: "string", bool: "boolean", list: "array", dict: "object"}
SECTIONS = {"Train": "train", "Choosing": "lookaheadkv"}  # whose keys an arm may change


def study_schema() -> dict[str, Any]:
    """The schema that checks a whole config."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Study config",
        "description": str(Study.__doc__),
    } | _section(Study)


def _section(section: type) -> dict[str, Any]:
    keys = declared(section)
    required = [name for name, entry in keys.items() if entry.required]
    return {
        "type": "object",
        "additionalProperties": False,
        **({"required": required} if required else {}),
        "properties": {name: _key(entry) for name, entry in keys.items()},
    }


def _key(entry: Declared) -> dict[str, Any]:
    part = _value(entry.kinds, entry.key, entry.nullable)
    if entry.default is not MISSING:
        part["default"] = entry.default
    return part | {"description": describe(entry)}


def _value(kinds: tuple[Any, ...], key: Key, nullable: bool = False) -> dict[str, Any]:
    """What a value may be."""
    if get_origin(kinds[0]) is Literal:
        return {"enum": [*get_args(kinds[0]), *([None] if nullable else [])]}
    types = [TYPES.get(get_origin(kind) or kind, "object") for kind in kinds] + ["null"] * nullable
    part: dict[str, Any] = {"type": types[0] if len(types) == 1 else types}
    for kind in kinds:
        if dataclasses.is_dataclass(kind):
            part |= _section(kind)  # type: ignore[arg-type]
            part["type"] = types[0] if len(types) == 1 else types
        else:
            part |= _rules(kind, key)
    return part


def _rules(kind: Any, key: Key) -> dict[str, Any]:
    match get_origin(kind) or kind:
        case t if t is list:
            return _list(kind, key)
        case t if t is dict:
            return _mapping(kind, key)
        case t if t is str:
            rules: dict[str, Any] = {"pattern": key.pattern or None, "minLength": 1 if key.some else None}
        case t if t in (int, float):
            rules = {
                "minimum": key.least,
                "maximum": key.most,
                "exclusiveMinimum": 0 if key.positive else None,
            }
            rules["not"] = {"multipleOf": 2} if key.odd else None
        case _:
            rules = {}
    return {name: rule for name, rule in rules.items() if rule is not None}


def _list(kind: Any, key: Key) -> dict[str, Any]:
    [item] = get_args(kind)
    part = _value((item,), replace(key, some=False))
    if "description" not in part:
        part["description"] = key.item or allowed((item,), key) or f"one of the {key.items}"
    if dataclasses.is_dataclass(item):
        part["description"] = f"keys with values: {item.__doc__}"
    return {
        **({"minItems": 1} if key.some else {}),
        **({"uniqueItems": True} if key.distinct else {}),
        "items": part,
    }


def _mapping(kind: Any, key: Key) -> dict[str, Any]:
    value = _value((get_args(kind)[1],), replace(key, some=False)) if not key.parts else _changes(key)
    return {
        **({"minProperties": 1} if key.some else {}),
        "propertyNames": {"pattern": key.names},
        "additionalProperties": value | {"description": key.item},
    }


def _changes(key: Key) -> dict[str, Any]:
    """Keys of other sections, any of them, without defaults."""
    of = [(SECTIONS[part.__name__], name) for part in key.parts for name in declared(part)]
    properties = {
        name: {"$ref": f"#/properties/{section}/properties/{name}"}
        for section, name in of
        if name not in key.without
    }
    return {"type": "object", "additionalProperties": False, "properties": properties}


def describe(entry: Declared) -> str:
    """What a key may hold, what it means, and what null stands for."""
    text = ": ".join(part for part in (allowed(entry.kinds, entry.key), entry.key.help) if part)
    return f"{text}; null: {entry.key.null}" if entry.nullable else text


def allowed(kinds: tuple[Any, ...], key: Key) -> str:
    """The kinds of a value in words; nothing where its meaning says it."""
    words = [word for kind in kinds if (word := _allowed(kind, key))]
    if len(kinds) > 1 and get_origin(kinds[1]) is list:
        return f"{words[0]}, or a list of them" if words and kinds[0] is not str else ""
    return words[0] if words else ""


def _allowed(kind: Any, key: Key) -> str:
    if dataclasses.is_dataclass(kind):
        return "keys with values"
    if kind in (int, float):
        return f"{'a' if kind is float else 'an odd' if key.odd else 'an'} {_number(kind, key)}"
    if get_origin(kind) is list:
        [item] = get_args(kind)
        plural = key.items or _number(item, key).replace("integer", "integers", 1)
        return f"a list of {'different ' * key.distinct}{plural}{', one or more' * key.some}"
    return ""


def _number(kind: Any, key: Key) -> str:
    word = "integer" if kind is int else "number"
    if key.positive:
        return f"{word} above 0"
    if key.most is not None:
        return f"{word} from {key.least} to {key.most}"
    return f"{word} of {key.least} or more"
