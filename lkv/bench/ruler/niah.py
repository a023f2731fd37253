"""RULER's needle tasks: magic values hidden in noise, in essays, or among other needles."""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import cycle, islice

from lkv.bench.ruler.wordings import Generator, Prompt, filled, word_list, wording

# Where a needle may stand in an essay, per cent: 40 places from start to end, as RULER rounds them.
DEPTHS = tuple(round(100 * place / 39) for place in range(40))


@dataclass(frozen=True)
class Needles:
    """What is hidden: kinds are words, numbers or uuids; `values` per key; `queries` keys are asked for."""

    key: str = "words"
    value: str = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1


def niah(needles: Needles, haystack: str, length: int, essays: tuple[str, str] | None = None) -> Generator:
    """Needles in `noise` or `needles` (unit: a line) or in `essays` (name, text; unit: a word)."""
    draw = _drawer()
    noise, needle = wording("noise"), wording("needle")
    template, prefix = wording("niah"), wording("niah_prefix")
    kind = needles.value
    if needles.queries * needles.values == 1:
        template, prefix = (singular(text) for text in (template, prefix))
        kind = kind.removesuffix("s")
    words = essays[1].split() if essays else []

    def make(size: int, rng: random.Random, index: int) -> Prompt:
        seen: set[str] = set()
        values = {
            draw(needles.key, rng, seen): [draw(needles.value, rng, seen) for _ in range(needles.values)]
            for _ in range(needles.keys)
        }
        asked = rng.sample(list(values), needles.queries)
        hidden = [
            needle.format(type_needle_v=needles.value, key=key, value=value)
            for key, some in values.items()
            for value in some
        ]
        rng.shuffle(hidden)
        if words:
            context = _into_essay(hidden, islice(cycle(words), size), rng)
        elif haystack == "noise":
            context = _between_lines(hidden, [noise] * size, rng)
        else:
            decoys = [
                needle.format(
                    type_needle_v=needles.value,
                    key=draw(needles.key, rng, seen),
                    value=draw(needles.value, rng, seen),
                )
                for _ in range(size)
            ]
            context = _between_lines(hidden, decoys, rng)
        query = ", and ".join(part for part in (", ".join(asked[:-1]), asked[-1]) if part)
        return Prompt(
            *filled(template, context, type_needle_v=kind, query=query),
            prefix.format(type_needle_v=kind, query=query),
            [value for key in asked for value in values[key]],
        )

    least = 1 if words else needles.keys * needles.values
    return Generator(make, least, length, essays[0] if essays else haystack)


def singular(text: str) -> str:
    return text.replace("Some", "A").replace("are all", "is").replace(" are", " is")


def _drawer() -> Callable[[str, random.Random, set[str]], str]:
    """Draws a word pair, number or uuid that is not in `seen` yet, and notes it there."""
    adjectives, nouns = word_list("adjective"), word_list("noun")

    def draw(kind: str, rng: random.Random, seen: set[str]) -> str:
        while True:
            if kind == "numbers":
                value = str(rng.randint(10**6, 10**7 - 1))
            elif kind == "uuids":
                value = str(uuid.UUID(int=rng.getrandbits(128), version=4))
            else:
                value = f"{rng.choice(adjectives)}-{rng.choice(nouns)}"
            if value not in seen:
                seen.add(value)
                return value

    return draw


def _between_lines(hidden: list[str], lines: list[str], rng: random.Random) -> str:
    return "\n".join(_insert(hidden, lines, rng.sample(range(len(lines)), len(hidden))))


def _into_essay(hidden: list[str], words: Iterable[str], rng: random.Random) -> str:
    # RULER splits with NLTK's punkt, a download; a full stop before a capital is near enough for a place.
    sentences = re.split(r"(?<=[.!?]) (?=[\"'“(\[]?[A-Z])", " ".join(words))
    places = [int(len(sentences) * depth / 100) for depth in rng.sample(DEPTHS, len(hidden))]
    return " ".join(_insert(hidden, sentences, places))


def _insert(hidden: list[str], into: list[str], places: list[int]) -> list[str]:
    # From the back, so that earlier places stay where they are.
    for place, line in zip(sorted(places, reverse=True), hidden, strict=True):
        into.insert(place, line)
    return into
