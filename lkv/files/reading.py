"""How files of others are read: regular files alone, UTF-8, JSON within bounds, values of the right kind.

Every reader of text and JSON goes through here, so that each kind of bad file is refused in one place.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from lkv.errors import UserError

DEEPEST = 100  # levels of JSON; nothing that is read here has more than ten
LARGEST = 2**63 - 1  # what a tensor, a seed and a column of integers hold


class Kind(NamedTuple):
    """What a value must be, in words, and whether it is."""

    words: str
    fits: Callable[[Any], bool]


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST


def _or_null(fits: Callable[[Any], bool], value: Any) -> bool:
    return value is None or fits(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _all(value: Any, fits: Callable[[Any], bool], number: int | None = None) -> bool:
    return isinstance(value, list) and number in (None, len(value)) and all(map(fits, value))


KINDS = {
    "text": Kind("a text", _is_text),
    "name": Kind("a text that is not empty", lambda value: _is_text(value) and bool(value.strip())),
    "label": Kind("a text or a whole number", lambda value: _is_text(value) or _is_count(value)),
    "texts": Kind("a list of texts", lambda value: _all(value, _is_text)),
    "two texts": Kind("two texts", lambda value: _all(value, _is_text, 2)),
    "count": Kind("a whole number of 0 or more", _is_count),
    "some": Kind("a whole number of 1 or more", lambda value: _is_count(value) and value > 0),
    "counts": Kind("a list of whole numbers of 0 or more", lambda value: _all(value, _is_count)),
    "number": Kind("a number", _is_number),
    "two numbers": Kind("two numbers", lambda value: _all(value, _is_number, 2)),
    "flag": Kind("true or false", lambda value: isinstance(value, bool)),
    "object": Kind("an object", _is_object),
    "objects": Kind("a list of objects", lambda value: _all(value, _is_object)),
    "named objects": Kind(
        "an object of objects", lambda value: _is_object(value) and _all([*value.values()], _is_object)
    ),
}
KINDS |= {
    f"{name} or null": Kind(f"{KINDS[name].words} or null", partial(_or_null, KINDS[name].fits))
    for name in ("some", "text", "texts", "number", "object")
}


def regular(path: str | Path, missing: str) -> Path:
    """`path` where it is a file or a link to one, else a UserError: `missing` if nothing is there.

    What is no regular file is not opened: a pipe may never answer, and a device never end.
    """
    path = Path(path)
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"{path} is a folder; give a file")
    if _exists(path):
        raise UserError(f"{path} is a device or a pipe; give a regular file")
    raise UserError(missing)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except RuntimeError:  # a link to itself, before Python 3.13
        return False


def expanded(path: str) -> Path:
    """The path with the user's home for `~`."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        user = path.partition("/")[0]
        raise UserError(f"{path}: no user's home is {user!r}; write the whole path") from None


def text_of(content: bytes, refused: str) -> str:
    """`content` as text, without the mark that some editors put before it. What is not UTF-8 is a UserError:
    `refused`, in which `{}` stands for the reason."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"no UTF-8: {error.reason} at byte {error.start}"
        raise UserError(refused.replace("{}", reason)) from None


def read_text(path: str | Path, missing: str, way_out: str = "convert it") -> str:
    """The text of a regular file in UTF-8."""
    return text_of(regular(path, missing).read_bytes(), f"{path} is not UTF-8 text ({{}}); {way_out}")


def parse(content: bytes | str, refused: str, halves: bool = False) -> Any:
    """The value of a JSON text. What is none, or cannot be worked with, is a UserError: `refused`, in which
    `{}` stands for the reason. Half a character, which JSON can write, is let pass with `halves`."""
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        value = json.loads(text)
        if not halves and "\\u" in text:  # the one way to write half a character
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        if text.count("[") + text.count("{") <= DEEPEST or _depth(value) <= DEEPEST:
            return value
        reason = f"more than {DEEPEST} levels deep"
    except RecursionError:
        reason = f"more than {DEEPEST} levels deep"
    except UnicodeEncodeError as error:
        reason = f"half a character, \\u{ord(error.object[error.start]):04x}"
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        reason = str(error)
    except ValueError:  # Python's own bound
        reason = "a number of more than 4,300 digits"
    raise UserError(refused.replace("{}", reason))


def whole_characters(text: str) -> str:
    """The text with a replacement character for each half of one, which no file in UTF-8 can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _depth(value: Any) -> int:
    """Levels of lists and objects; without recursion."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, (dict, list))]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


def require(
    record: Any,
    keys: Iterable[str] | Mapping[str, str],
    source: object,
    maker: str,
    optional: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """`record` if it is an object with `keys`; otherwise a UserError that says who makes such a file.

    Where `keys` is a mapping to the names of KINDS, the values are of these kinds too; those of `optional`
    are where they are there.
    """
    way_out = f"give a file made by {maker}, or make it again"
    missing = [key for key in keys if not isinstance(record, dict) or key not in record]
    if missing:
        raise UserError(f"{source} lacks {', '.join(missing)}; {way_out}")
    if not isinstance(record, dict):
        raise UserError(f"{source} holds {shown(record)}, no object; {way_out}")
    kinds = {**(keys if isinstance(keys, Mapping) else {}), **optional}
    for key, kind in kinds.items():
        if key in record and not KINDS[kind].fits(record[key]):
            found = f"found {shown(record[key])}"
            raise UserError(f"{source}: {key} must be {KINDS[kind].words}, {found}; {way_out}")
    return dict(record)


def shown(value: Any) -> str:
    """A value from a file, for an error: what JSON calls it, cut where it is long."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, int) and abs(value) > LARGEST:
        return "a larger one"
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 40 else f"{text[:40]}…"


def filled(template: str, fields: Mapping[str, Any], refused: str) -> str:
    """`template` with `{name}` replaced by fields, and `{{` by a brace, as str.format does it. Nothing else
    of str.format is there: its widths and attributes, in a file of others, would fill the memory or read what
    is none of theirs."""
    parts = re.split(r"(\{\{|\}\}|\{\w+\})", template)
    for at, part in enumerate(parts):
        if at % 2 == 0 and ("{" in part or "}" in part):
            raise UserError(refused.replace("{}", "a brace that is no {field}; write {{ for a brace"))
        if at % 2 and part not in ("{{", "}}"):
            if (name := part[1:-1]) not in fields:
                raise UserError(refused.replace("{}", f"no field is called {name}"))
            parts[at] = str(fields[name])
        elif at % 2:
            parts[at] = part[0]
    return "".join(parts)
