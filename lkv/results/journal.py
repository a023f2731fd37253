"""The journal: append-only JSONL that lets an evaluation go on where a kill stopped it.

The first line says what the file is. Then one line a sample × method × budget, each with a hash of its own. A
sample's lines are one group: written together when its last answer ends, fsynced, and only used together.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from lkv.errors import UserError
from lkv.files.atomic import atomic_write

HEAD = b'{"format": "lkv-journal", "version": 3}\n'
EARLIER = b'{"format": "lkv-journal", "version": 2}\n'  # whose keys are not those of today
HASHED = re.compile(rb'(\{.*), "hash": "([0-9a-f]{16})"\}', re.DOTALL)


class Journal:
    """Finished cells by key. Opening sets torn and damaged lines aside in NAME.torn, and says so in `notice`.

    Raises UserError for a file that is no journal, and leaves it as it is. A journal of the earlier form is
    renamed to NAME.old.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.cells: dict[str, dict[str, Any]] = {}
        self.notice = ""
        kind = kind_of(self.path)
        if kind == "foreign":
            raise UserError(
                f"{self.path} is not a journal of lkv, and is left as it is; give another --journal, or one "
                "that does not exist yet"
            )
        if kind == "earlier":
            old = _beside(self.path, ".old")
            content = self.path.read_bytes()
            answers = content.count(b"\n") - content.startswith(EARLIER)
            self.path.replace(old)
            self.notice = (
                f"{self.path.name} has an earlier form: {answers} answers are computed anew ({old.name})"
            )
        if kind == "journal":
            self._read()

    def _read(self) -> None:
        content = self.path.read_bytes()
        if not content.startswith(HEAD):  # the kill came while the first line was written
            self.path.write_bytes(b"")
            return
        lines = content[len(HEAD) :].split(b"\n")
        if not lines[-1]:
            lines.pop()  # what follows the last newline: nothing
        elif lines:
            lines[-1] += b"\0"  # without its newline a line is torn, whatever it holds
        whole, torn = _whole_groups(lines)
        if torn:
            self._set_aside([lines[i].rstrip(b"\0") for i in torn], [lines[i] for i in whole])
            self.notice = (
                f"{self.path}: {_spans([i + 2 for i in torn])} torn or damaged, set aside in "
                f"{self.path.name}.torn and computed anew"
            )
        for i in whole:
            cell = _checked(lines[i])
            assert cell is not None
            self.cells[cell["key"]] = cell

    def _set_aside(self, torn: Sequence[bytes], whole: Sequence[bytes]) -> None:
        """Moves torn lines to a file beside: what follows one would be glued to it."""
        with Path(f"{self.path}.torn").open("ab") as stream:
            stream.write(b"".join(line + b"\n" for line in torn))
            stream.flush()
            os.fsync(stream.fileno())
        with atomic_write(self.path, "wb") as stream:
            stream.write(HEAD + b"".join(line + b"\n" for line in whole))

    def append(self, cells: Sequence[Mapping[str, Any]]) -> None:
        """Writes one group and waits until it is on disk."""
        group = [{**cell, "group": [i, len(cells)]} for i, cell in enumerate(cells)]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as stream:
                head = b"" if stream.tell() else HEAD
                stream.write(head + b"".join(_line(cell) for cell in group))
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; free some space and run again: "
                "finished samples are kept"
            ) from None
        for cell in group:
            self.cells[cell["key"]] = cell


def kind_of(path: Path) -> str:
    """What is at `path`: "nothing" or an empty file, a "journal", one of the "earlier" form, or "foreign"."""
    if not path.exists():
        return "nothing"
    if not path.is_file():
        return "foreign"
    with path.open("rb") as stream:
        first = stream.readline(1 << 20)
    if not first:
        return "nothing"
    if first == HEAD or (len(first) < len(HEAD) and HEAD.startswith(first)):
        return "journal"
    try:
        cell = json.loads(first)
    except (ValueError, RecursionError):
        return "foreign"
    keyed = isinstance(cell, dict) and {"key", "group"} <= set(cell)
    return "earlier" if first == EARLIER or keyed else "foreign"


def _line(cell: Mapping[str, Any]) -> bytes:
    # A half character (a lone surrogate) stays the escape that JSON has for it.
    text = json.dumps(cell, ensure_ascii=False).encode("utf-8", "backslashreplace")
    return text[:-1] + f', "hash": "{_hash(text[:-1])}"}}\n'.encode()


def _hash(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]


def _checked(line: bytes) -> dict[str, Any] | None:
    """The cell that a line holds, or None where it is not what was written."""
    found = HASHED.fullmatch(line)
    if found is None or _hash(found[1]) != found[2].decode():
        return None
    cell: dict[str, Any] = json.loads(found[1] + b"}")
    return cell


def _whole_groups(lines: Sequence[bytes]) -> tuple[list[int], list[int]]:
    """(lines of complete groups, all others), by their place."""
    whole: list[int] = []
    group: list[int] = []
    for i, line in enumerate(lines):
        cell = _checked(line)
        if cell is None:
            group = []
            continue
        index, size = cell["group"]
        group = [*group, i] if index == len(group) else ([i] if index == 0 else [])
        if group and len(group) == size:
            whole += group
            group = []
    return whole, sorted(set(range(len(lines))) - set(whole))


def _spans(numbers: Sequence[int]) -> str:
    """`line 4 is` or `lines 2-3, 7 are`."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    text = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"lines {text} are" if len(numbers) > 1 else f"line {text} is"


def _beside(path: Path, suffix: str) -> Path:
    """A file that is not there yet: NAME.old, else NAME.old.2, …"""
    names = (f"{path.name}{suffix}{number}" for number in ["", *(f".{n}" for n in range(2, 1000))])
    return next(path.with_name(name) for name in names if not path.with_name(name).exists())
