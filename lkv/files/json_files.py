"""JSON and JSONL files, written whole and checked when read; hashes of their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lkv.errors import UserError
from lkv.files.atomic import atomic_write
from lkv.files.reading import parse, regular
from lkv.files.sums import check_sum

HASH = "lkv_hash"  # in JSON files that figures rest on: of all the rest


def write_json(path: str | Path, value: Any) -> None:
    with atomic_write(path) as stream:
        json.dump(value, stream, indent=2, sort_keys=False, ensure_ascii=False)
        stream.write("\n")


def write_hashed_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """An object that carries its own hash, which `read_json` checks."""
    plain = json.loads(json.dumps(value))  # as it will be read: tuples as lists, keys as text
    write_json(path, {**plain, HASH: fingerprint(plain)})


def read_json(path: str | Path) -> Any:
    """The value of a JSON file; an object that carries a hash of itself is checked, and comes without it.

    Of others a sum is checked where one is kept (lkv.files.sums).
    """
    place = regular(path, f"no such file: {path}; run the step that writes it, or correct the path")
    content = place.read_bytes()
    value = parse(content, f"{path} is not JSON ({{}}); delete it and run the step that writes it")
    if not isinstance(value, dict) or HASH not in value:
        check_sum(path, hashlib.sha256(content).hexdigest())
    else:
        wanted = value.pop(HASH)
        if fingerprint(value) != wanted:
            raise UserError(
                f"{path} is damaged or was edited: {HASH} is not that of its content; make it again, or "
                f"delete the line with {HASH} to take it as it is"
            )
    return value


def write_jsonl(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    with atomic_write(path) as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_jsonl(path: str | Path, halves: bool = False) -> Iterator[dict[str, Any]]:
    """Streams records; a malformed line is named by file and line number. `halves` of characters are let
    pass where a text is only looked at."""
    missing = f"no such data file: {path}; run the step that writes it, or correct the path"
    with regular(path, missing).open("rb") as stream:
        for number, line in enumerate(stream, 1):
            yield parse_line(line, f"{path}, line {number}", halves)


def parse_line(line: bytes, place: str, halves: bool = False) -> dict[str, Any]:
    """The object that a line of JSONL holds; `place` is what an error names."""
    record = parse(line, f"{place}: not a JSON record in UTF-8 ({{}})", halves)
    if not isinstance(record, dict):
        raise UserError(f"{place}: expected a JSON object, found {type(record).__name__}")
    return record


def fingerprint(*parts: Any) -> str:
    """Sixteen hex digits that change when any part does; parts must be JSON values."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
