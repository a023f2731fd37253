"""Which files this program wrote, told by what they hold: only such may be written over."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lkv.errors import UserError
from lkv.results.journal import kind_of

HEAD = 1 << 20  # bytes that tell what a file is
LOOKAHEAD, LEARNED = "lookahead.json", "lookahead_tokens.safetensors"  # of an adapter: nobody else's
PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")  # of everybody's adapters
WIDTHS = (3.6, 4.8, 5.0, 5.2, 7.2)  # inches, of all that lkv plot draws

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


def plotted(start: bytes, size: str, date: bytes) -> Ours:
    """A figure as lkv plot saves it: Matplotlib's, in our fonts, of a width of ours and without a date."""
    width = "|".join(re.escape(f"{72 * inches:g}") for inches in WIDTHS)
    sized = re.compile(size.replace("WIDTH", f"(?:{width})").encode())

    def ours(path: Path) -> bool:
        content = path.read_bytes()
        drawn = b"Matplotlib" in content and b"STIXGeneral" in content and date not in content
        return content.startswith(start) and drawn and sized.search(content) is not None

    return ours


plot_pdf = plotted(b"%PDF", r"/MediaBox \[ 0 0 WIDTH ", b"/CreationDate")
plot_svg = plotted(b"<?xml", r'<svg [^>]*\bwidth="WIDTHpt"', b"<dc:date>")


def plot_png(path: Path) -> bool:
    """A PNG as lkv plot saves it: Matplotlib's, of 200 dots an inch and a width of ours, and no word more.

    A figure of another program that agrees in all of this cannot be told from ours.
    """
    chunks = dict(_chunks(path.read_bytes()))
    if set(chunks) != {b"IHDR", b"tEXt", b"pHYs", b"IDAT", b"IEND"}:
        return False
    width, form = int.from_bytes(chunks[b"IHDR"][:4], "big"), chunks[b"IHDR"][8:]
    drawn = chunks[b"tEXt"].startswith(b"Software\0Matplotlib version") and form == b"\x08\x06\0\0\0"
    dots = (7874).to_bytes(4, "big")  # a metre
    return drawn and chunks[b"pHYs"] == dots * 2 + b"\1" and width in [round(200 * size) for size in WIDTHS]


def table_pdf(path: Path) -> bool:
    """A table as lkv table sets it: Typst's, with our title and without a date."""
    content = path.read_bytes()
    made = b"Typst" in content and b"Score by method and budget" in content
    return content.startswith(b"%PDF") and made and b"/CreationDate" not in content


def journal(path: Path) -> bool:
    """A journal, whole or torn, of any form."""
    return kind_of(path) != "foreign"


def adapter_part(path: Path) -> bool:
    """A file of an adapter that lies beside what only our adapters have."""
    return (path.parent / LEARNED).is_file() or json_of("base_model", "sha256")(path.parent / LOOKAHEAD)


def shard(path: Path) -> bool:
    """A shard of answers, or its facts: either of the two may be damaged."""
    answers, facts = path.with_suffix(".jsonl"), path.with_suffix(".json")
    if json_of("sha256", "records", "run")(facts):
        return True
    record = _parsed(_head(answers).partition(b"\n")[0]) if answers.is_file() else None
    return isinstance(record, dict) and set(record) == {"id", "response"} and type(record["response"]) is list


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


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, content) of a PNG's chunks."""
    at = 8 if content.startswith(b"\x89PNG\r\n\x1a\n") else len(content)
    while at < len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        yield content[at + 4 : at + 8], content[at + 8 : at + 8 + size]
        at += 12 + size


def _lines(path: Path) -> list[str]:
    return _head(path).decode("utf-8", "replace").split("\n")


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _has(value: Any, keys: Sequence[str]) -> bool:
    return isinstance(value, dict) and all(key in value for key in keys)
