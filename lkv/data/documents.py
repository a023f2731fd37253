"""Real text that ships with CPython, split once into a training side and a test side.

The language reference (`pydoc_data.topics`) is prose for both sides; the standard library's source is code
for training only. Texts depend on the Python version, and so does the split.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from lkv.errors import UserError, one_of

KINDS = ("topics", "code")

# Normalised characters from which a shared paragraph ties two documents to one side.
LONG_PARAGRAPH = 80

# Left out of the code: tests, tables of characters, the topics themselves, and what quotes one at length.
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "encodings", "pydoc_data", "pdb.py"}


@dataclass(frozen=True)
class Document:
    """One text of kind `topics` or `code`; `sha256` is of its normalised text (hex)."""

    name: str
    kind: str
    text: str
    sha256: str


def normalised(text: str) -> str:
    """Lower case, every run of white space one blank: what makes two texts the same text."""
    return " ".join(text.lower().split())


def long_paragraphs(text: str) -> set[str]:
    """The normalised paragraphs of at least LONG_PARAGRAPH characters."""
    return {part for part in map(normalised, _paragraphs(text)) if len(part) >= LONG_PARAGRAPH}


def documents(kind: str) -> list[Document]:
    """All documents of a kind, by name; code that quotes a topic is left out."""
    if kind not in KINDS:
        raise one_of("kind of document", kind, KINDS)
    return list(_topics() if kind == "topics" else _code())


def side(document: Document) -> Literal["train", "test"]:
    """The side a document is on, for ever: code trains; a topic goes where its group's hash says.

    A group is what long shared paragraphs connect; its hash is the smallest SHA-256 in it.
    """
    if document.kind == "code":
        return "train"
    group = _groups().get(document.sha256, document.sha256)
    return "test" if int(group, 16) % 2 else "train"


def haystack(source: str) -> tuple[str, str]:
    """(name for the haystack column, text): `pydoc`, the test side's prose, or an essays file.

    An essays file is JSON with a "text" field or plain text; its name carries 8 digits of its SHA-256.
    """
    if source == "pydoc":
        return "pydoc", _prose()
    path = Path(source)
    if not path.is_file():
        raise UserError(
            f"no such essays file: {source}; set haystack to 'pydoc' (ships with Python), "
            'or to a JSON file with a "text" field, or to a .txt file'
        )
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
        if path.suffix == ".json":
            text = json.loads(text)["text"]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f'{source} is not an essays file ({error}); wanted: JSON {{"text": "..."}} or plain text in UTF-8'
        ) from None
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{source} holds no text; wanted: the essays as one string")
    return f"{path.stem.lower()}:{hashlib.sha256(content).hexdigest()[:8]}", text


def _paragraphs(text: str) -> list[str]:
    return re.split(r"\n\s*\n", text)


def _document(name: str, kind: str, text: str) -> Document:
    return Document(name, kind, text, hashlib.sha256(normalised(text).encode()).hexdigest())


@cache
def _topics() -> tuple[Document, ...]:
    from pydoc_data.topics import topics

    return tuple(_document(name, "topics", text) for name, text in sorted(topics.items()))


@cache
def _code() -> tuple[Document, ...]:
    root = Path(sysconfig.get_paths()["stdlib"])
    quoted = set().union(*(long_paragraphs(topic.text) for topic in _topics()))
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        # A distribution puts files of its own beside the library (site-packages, build records).
        if SKIPPED.intersection(parts) or parts[0].removesuffix(".py") not in sys.stdlib_module_names:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if text.strip() and quoted.isdisjoint(long_paragraphs(text)):
            found.append(_document("/".join(parts), "code", text))
    return tuple(found)


@cache
def _groups() -> dict[str, str]:
    """SHA-256 of each topic -> smallest SHA-256 in its group."""
    owners: dict[str, list[str]] = {}
    for topic in _topics():
        for paragraph in long_paragraphs(topic.text):
            owners.setdefault(paragraph, []).append(topic.sha256)
    group = {topic.sha256: topic.sha256 for topic in _topics()}
    changed = True
    while changed:  # labels only fall, so this ends
        changed = False
        for members in owners.values():
            smallest = min(group[member] for member in members)
            for member in members:
                changed |= group[member] != smallest
                group[member] = smallest
    return group


def _prose() -> str:
    """The test side's paragraphs that are sentences, each once: no headings, grammar or examples."""
    found: dict[str, str] = {}
    for topic in _topics():
        if side(topic) == "test":
            for paragraph in _paragraphs(topic.text):
                line = " ".join(paragraph.split()).removeprefix("* ")
                if (
                    len(line) >= LONG_PARAGRAPH
                    and line[-1] in ".:"
                    and not re.search("::=|>>>|[*=~-]{4}", line)
                ):
                    found.setdefault(normalised(line), line)
    return "\n\n".join(found.values())
