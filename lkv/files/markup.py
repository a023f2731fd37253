"""Texts of others inside documents of ours: shown as they are, never read as markup.

Names, predictions and facts come from configs, folders and files that strangers wrote. HTML is escaped by its
template (jinja's autoescape), plots read no markup; here are the other languages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

TEX = {
    "\\": "\\textbackslash{}", "&": "\\&", "%": "\\%", "$": "\\$", "#": "\\#", "_": "\\_", "{": "\\{",
    "}": "\\}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "\\textless{}",
    ">": "\\textgreater{}", "|": "\\textbar{}", "[": "{[}", "]": "{]}", "–": "--", "—": "---",
    "×": "\\(\\times\\)", "→": "\\(\\to\\)", "±": "\\(\\pm\\)", "≤": "\\(\\leq\\)", "≥": "\\(\\geq\\)",
    "°": "\\(^\\circ\\)", "†": "\\textdagger{}",
}  # fmt: skip


def typst_string(text: str) -> str:
    """A typst string literal: shown as it is, never read as markup."""
    return '"' + " ".join(text.split()).replace("\\", "\\\\").replace('"', '\\"') + '"'


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, also inside a table cell."""
    return "".join("\\" + char if char in "\\`*_{}[]<>|#~$&" else char for char in " ".join(text.split()))


def latex_text(text: str) -> str:
    """Text that LaTeX shows as it is; brackets are braced, since `\\\\[` would start an optional argument."""
    return "".join(TEX.get(char, char) for char in " ".join(text.split()))


def rst_text(value: object) -> str:
    """A fact on one line of reStructuredText, in the look of code; no role and no directive begins in it."""
    text = " ".join(str(value).split()) or "–"
    escaped = "".join(char if char.isalnum() or char == " " else f"\\{char}" for char in text)
    return f":literal:`{escaped}`"


def rst_code(value: Any) -> str:
    """A JSON value as a block of code; in ASCII, as reStructuredText ends lines at other characters too."""
    lines = json.dumps(value, indent=2).splitlines()
    return "\n".join([".. code:: json", "", *(f"   {line}" for line in lines)])


def inert(value: Any) -> Any:
    """The texts of a JSON value so that Markdown shows them, as code too; usual names stay as they are."""
    if isinstance(value, Mapping):
        return {inert(key): inert(part) for key, part in value.items()}
    if isinstance(value, list):
        return [inert(part) for part in value]
    if isinstance(value, str):
        return re.sub(r"([\\<>\[\]&])", r"\\\1", " ".join(value.split()).replace("`", "'"))
    return value
