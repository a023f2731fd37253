"""Names that others choose: what they may look like before a program, a path or a shell is given them.

A whole name must match its pattern, so that no line break slips in at the end. workflow/schemas has the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from lkv.errors import UserError

WORD = "[A-Za-z0-9][A-Za-z0-9._+-]{0,199}"  # a study, a model, an arm, a method, a task
NUMBER = r"[0-9]+(\.[0-9]+)*"
PACKAGE = "[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?"
VERSION = rf"([0-9]+!)?{NUMBER}((a|b|rc)[0-9]+)?(\.post[0-9]+)?(\.dev[0-9]+)?"
SHA256 = "[0-9a-f]{64}"
MEMBER = "[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*"  # in an archive, without `..`
REPO = "[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
REVISION = r"[A-Za-z0-9](?!.*\.\.)[A-Za-z0-9._/-]{0,199}"

SPREADSHEET = ("=", "+", "-", "@", "\t")  # what makes a spreadsheet compute a cell


def checked(what: str, given: object, pattern: str, allowed: str) -> str:
    """`given` if the whole of it matches, else a UserError that says what is allowed."""
    if isinstance(given, str) and re.fullmatch(pattern, given):
        return given
    raise UserError(f"{what} {given!r} is not allowed; allowed: {allowed}")


def words(found: Iterable[str]) -> list[str]:
    """Those of the names that a listing found that may be names, in order."""
    return sorted(name for name in found if re.fullmatch(WORD, name))


def quoted_cell(cell: Any) -> Any:
    """A CSV's cell, a text with a ' before what a spreadsheet would compute; `cell_text` takes it away.

    A carriage return, at which some readers end a line, becomes a space.
    """
    if not isinstance(cell, str):
        return cell
    text = cell.replace("\r", " ")
    return f"'{text}" if _computed(text) else text


def cell_text(cell: Any) -> Any:
    """The cell that `quoted_cell` was given."""
    return cell[1:] if isinstance(cell, str) and cell[:1] == "'" and _computed(cell[1:]) else cell


def _computed(cell: Any) -> bool:
    return isinstance(cell, str) and cell.lstrip("'").startswith(SPREADSHEET)
