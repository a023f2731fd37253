"""CSV files as kvpress writes them: cells stay text, lists are numpy's."""

from __future__ import annotations

import ast
import csv
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from lkv.errors import UserError

RETURN = "\ufdd0"  # stands for a carriage return while a CSV is read; no text has this character
ITEM = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""


def rows(path: str | Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, cells by column) of a CSV or .csv.gz that has `columns`, in any order and beside others.

    A cell is its text, so that `nan`, `007` and nothing at all stay what they are. `place` names file and
    line. Raises UserError for another header, a broken row, and what is not UTF-8.
    """
    if not Path(path).is_file():
        raise UserError(f"no such CSV file: {path}; correct the path")
    csv.field_size_limit(2**31 - 1)  # a cell may be a whole context
    opened = gzip.open if Path(path).suffix == ".gz" else open
    line = 0
    try:
        with closing(opened(path, "rt", encoding="utf-8-sig", newline="\n")) as stream:
            reader = csv.reader(_guarded(stream), strict=True)
            header = next(reader, [])
            if wrong := [name for name in columns if header.count(name) != 1]:
                found = ", ".join(header) or "none"
                raise UserError(f"{path} needs one column each of {', '.join(wrong)}; its columns: {found}")
            for cells in reader:
                line = reader.line_num
                if len(cells) != len(header):
                    raise UserError(f"{path}, line {line}: {len(cells)} cells, the header has {len(header)}")
                texts = (cell.replace(RETURN, "\r") for cell in cells)
                yield f"{path}, line {line}", dict(zip(header, texts, strict=True))
    except (csv.Error, UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path}, after line {line}: not a CSV in UTF-8 ({error}); get the file again"
        ) from None


def references(text: str) -> list[str] | None:
    """The texts of a list as numpy or Python prints it, with either quote; None if it is no such list."""
    if not re.fullmatch(rf"\s*\[(?:[\s,]*(?:{ITEM}))*[\s,]*\]\s*", text, re.DOTALL):
        return None
    try:
        return [ast.literal_eval(item) for item in re.findall(ITEM, text, re.DOTALL)]
    except (SyntaxError, ValueError):
        return None


def _guarded(lines: Iterable[str]) -> Iterator[str]:
    """Lines whose carriage returns are hidden, unless they are how the header's line ends.

    Writers leave a lone one unquoted, and readers would end the row there.
    """
    ends = False
    for number, line in enumerate(lines):
        ends = ends or (number == 0 and line.endswith("\r\n"))
        yield line if ends else line.replace("\r", RETURN)
