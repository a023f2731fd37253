"""The journal: append-only JSONL that lets an evaluation go on where a kill stopped it.

One line a sample × method × budget. A sample's lines are one group: written together, fsynced, and only used
together, so that a resumed run decodes the same batches and gives the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lkv.errors import UserError
from lkv.records import write_jsonl


class Journal:
    """Finished cells by key. Opening drops torn lines and torn groups, and says so in `notice`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.cells: dict[str, dict[str, Any]] = {}
        self.notice = ""
        if not self.path.exists():
            return
        whole, torn = _whole_groups(self.path.read_bytes())
        if torn:
            self.notice = f"{self.path.name}: dropped {torn} torn line(s) of an interrupted run"
            # What follows a torn line would be glued to it, so the file is cut back to whole groups.
            write_jsonl(self.path, whole)
        for cell in whole:
            self.cells[cell["key"]] = cell

    def append(self, cells: Sequence[Mapping[str, Any]]) -> None:
        """Writes one group and waits until it is on disk."""
        group = [{**cell, "group": [i, len(cells)]} for i, cell in enumerate(cells)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(cell, ensure_ascii=False) + "\n" for cell in group)
        try:
            with self.path.open("ab") as stream:
                stream.write(text.encode("utf-8"))
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; free some space and run again: "
                "finished samples are kept"
            ) from None
        for cell in group:
            self.cells[cell["key"]] = cell


def _whole_groups(content: bytes) -> tuple[list[dict[str, Any]], int]:
    """(cells of complete groups in order, number of lines dropped)."""
    *lines, unfinished = content.split(b"\n")  # without its newline a line is torn, whatever it holds
    whole: list[dict[str, Any]] = []
    group: list[dict[str, Any]] = []
    for line in lines:
        try:
            cell = json.loads(line)
            index, size = cell["group"]
        except (ValueError, KeyError, TypeError):
            group = []
            continue
        group = [*group, cell] if index == len(group) else ([cell] if index == 0 else [])
        if group and len(group) == size:
            whole += group
            group = []
    return whole, len(lines) + bool(unfinished) - len(whole)
