"""Training prompts about a document: a summary, the next lines of code, a sentence to repeat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from lkv.data.documents import documents, side

if TYPE_CHECKING:
    pass
from lkv.data.sketch import Fact, Items, Sketch


def training_documents(kind: str, rng: Random) -> Iterator[tuple[str, str, str]]:
    """(name, text, SHA-256) of training-side documents in random order, over and over."""
    allowed = [d for d in documents(kind) if side(d) == "train" and len(d.text) > 400]
    while True:
        for document in rng.sample(allowed, k=len(allowed)):
            yield document.name, document.text, document.sha256


def _reading(rng: Random, kind: str, heads: Sequence[str], questions: Sequence[str]) -> Sketch:
    used: list[str] = []

    def parts() -> Items:
        for title, text, digest in training_documents(kind, rng):
            used.append(digest)
            lines = text.splitlines(keepends=True)
            start = rng.randrange(max(1, len(lines) - 20))
            for line in lines[start:]:
                yield line, Fact(title)

    question = rng.choice(questions)
    return Sketch(rng.choice(heads), parts(), lambda _: question, used)


def summary(rng: Random) -> Sketch:
    """A document to be summed up."""
    return _reading(
        rng,
        "topics",
        ["Read this text.\n\n", "", "Document:\n"],
        [
            "Summarise the text above in one sentence.",
            "What is this text about?",
            "List three points that the text makes.",
            "Explain the main idea of the passage to a beginner.",
        ],
    )


def code(rng: Random) -> Sketch:
    """Library source to be continued or explained."""
    return _reading(
        rng,
        "code",
        ["```python\n", "Here is a source file.\n\n"],
        [
            "```\nWhat does this code do?",
            "```\nWrite the next lines of this file.",
            "```\nName one function above.",
        ],
    )


def sentences(rng: Random, used: list[str]) -> Iterator[str]:
    """Sentences of training-side topics; what the text runs together over 200 characters is no sentence."""
    for _, text, digest in training_documents("topics", rng):
        used.append(digest)
        yield from (s + ". " for s in " ".join(text.split()).split(". ") if 20 < len(s) < 200)


def repeat(rng: Random) -> Sketch:
    """Sentences of a document; the one that begins in a given way is to be repeated."""
    used: list[str] = []

    def ask(starts: list[Any]) -> str:
        return f'Repeat word for word the sentence that begins with "{starts[0]}".'

    items = ((s, Fact(" ".join(s.split()[:4]), s.strip())) for s in sentences(rng, used))
    return Sketch("", items, ask, used, first_alone=True)
