"""Which files this program wrote, told by what they hold: only such may be written over."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lkv.errors import UserError
from lkv.results.journal import kind_of

HEAD = 1 << 20  # bytes that tell what a file is
LOOKAHEAD, LEARNED = "lookahead.json", "lookahead_tokens.safetensors"  # of an adapter: nobody else's
PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")  # of everybody's adapters

Ours = Callable[[Path], bool]


def csv_of(columns: Sequence[str]) -> Ours:
    """A CSV of this contract: its first column, and no column but the contract's, half of them at least."""

    def ours(path: Path) -> bool:
        names = _lines(path)[0].rstrip("\r").split(",")
        known = len(names) > 1 and set(names) <= set(columns) and names[0] == columns[0]
        return known and 2 * len(names) >= len(columns)

    return ours


def json_of(*keys: str) -> Ours:
    """A JSON object with these keys."""

    def ours(path: Path) -> bool:
        try:
            return _has(json.loads(path.read_bytes()), keys)
        except (OSError, ValueError, RecursionError):
            return False

    return ours


def jsonl_of(*keys: str) -> Ours:
    """JSONL whose first line is an object with these keys."""

    def ours(path: Path) -> bool:
        with path.open("rb") as stream:
            return _has(_parsed(stream.readline(64 * HEAD)), keys)

    return ours


def text_of(pattern: str) -> Ours:
    """Text, or bytes, in whose head the pattern is found; ^ is the start of the file."""
    compiled = re.compile(pattern.encode())

    def ours(path: Path) -> bool:
        return compiled.search(_head(path)) is not None

    return ours


def drawn(start: bytes) -> Ours:
    """What begins so, and names Matplotlib or Typst as its maker."""

    def ours(path: Path) -> bool:
        content = path.read_bytes()
        return content.startswith(start) and (b"Matplotlib" in content or b"Typst" in content)

    return ours


def journal(path: Path) -> bool:
    """A journal, whole or torn, of any form."""
    return kind_of(path) != "foreign"


def adapter_part(path: Path) -> bool:
    """A file of an adapter that lies beside what only our adapters have."""
    return (path.parent / LEARNED).is_file() or json_of("base_model", "sha256")(path.parent / LOOKAHEAD)


def require_own_adapter(folder: Path) -> None:
    """Refuses to write over another project's adapter."""
    for name in PEFT_FILES:
        if (folder / name).exists() and not adapter_part(folder / name):
            raise UserError(f"{folder / name} is not of lkv train; it is left as it is: give another folder")


def checkpoint(path: Path) -> bool:
    """A checkpoint of lkv train, by the names in it."""
    head = _head(path)
    return all(name in head for name in (b"run", b"adapter", b"optimizer", b"before"))


log = text_of(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d [A-Z]+ ")
markdown_table = text_of(r"^\*\*[^\n]*\*\*\n\n\| Method \| Score")
latex_table = text_of(r"^% Needs \\usepackage\{booktabs\}\.\n")
html_table = text_of(r"^<!doctype html>(?s:.)*<title>Scores, cell by cell</title>")
claims = text_of(r"^# The claims, one by one\n")
model_card = text_of(r"^---\nbase_model: [^\n]*\nlibrary_name: peft\n(?s:.)*tags: \[lookaheadkv, ")


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(HEAD)


def _lines(path: Path) -> list[str]:
    return _head(path).decode("utf-8", "replace").split("\n")


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _has(value: Any, keys: Sequence[str]) -> bool:
    return isinstance(value, dict) and all(key in value for key in keys)
