"""Frozen data: a JSONL file and, beside it, what it is and its SHA-256. Built once, checked at every use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lkv.errors import UserError
from lkv.files.json_files import read_json, read_jsonl, write_hashed_json, write_jsonl
from lkv.files.reading import regular, require
from lkv.files.sums import sha256_file


def freeze(path: str | Path, records: Iterable[dict[str, Any]], **facts: Any) -> int:
    """Writes `records` as JSONL and, last, the sidecar: SHA-256, number of records and `facts`.

    Returns the number of records.
    """
    number = 0

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal number
        for record in records:
            number += 1
            yield record

    write_jsonl(path, counted())
    write_hashed_json(sidecar(path), {"sha256": sha256_file(path), "records": number, **facts})
    return number


def load(path: str | Path) -> Iterator[dict[str, Any]]:
    """Streams frozen records, after checking the file's SHA-256 against its sidecar."""
    regular(path, f"no such data file: {path}; run the step that writes it, or correct the path")
    wanted, found = facts_of(path)["sha256"], sha256_file(path)
    if wanted != found:
        raise UserError(
            f"{path} is damaged or was edited: its SHA-256 is {found}, {sidecar(path).name} says {wanted}; "
            "delete both and build the data again"
        )
    return read_jsonl(path)


def facts_of(path: str | Path, **kinds: str) -> dict[str, Any]:
    """What a sidecar says of its frozen file; `kinds` are those of facts that it may hold beside the hash."""
    return require(read_json(sidecar(path)), {"sha256": "name"}, sidecar(path), "lkv data", kinds)


def sidecar(path: str | Path) -> Path:
    """Where a frozen file's facts lie: DATA.json beside DATA.jsonl."""
    return Path(path).with_suffix(".json")
