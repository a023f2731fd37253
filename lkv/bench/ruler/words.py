"""RULER's tracing and counting tasks: variable tracking, common words, frequent coded words."""

from __future__ import annotations

import math
import random
import re
import string
from collections.abc import Callable
from itertools import pairwise

from lkv.bench.ruler.wordings import Generator, Prompt, filled, word_list, wording

HOPS = 4  # assignments after the first one of a chain
EXAMPLE_TOKENS = 500
COMMON = 10
ALPHA = 2.0  # of the zeta distribution of coded words; zeta(2) = pi^2 / 6
CODED = 6  # letters


def vt(length: int, count: Callable[[str], int]) -> Generator:
    """One chain of five variables in noise, after a worked example of at most 500 tokens; unit: a line.

    `count` gives a text's tokens. Where 500 tokens are more than a quarter of `length`, the example is
    held to that quarter, or to its one line of noise.
    """
    noise, template, prefix = wording("noise"), wording("vt"), wording("vt_prefix")
    limit = min(EXAMPLE_TOKENS, length // 4)

    def chain(lines: int, letters: int, value: int, rng: random.Random) -> tuple[str, int, str, list[str]]:
        names: dict[str, None] = {}
        while len(names) <= HOPS:
            names["".join(rng.choices(string.ascii_uppercase, k=letters))] = None
            names.pop("VAR", None)
        found = list(names)
        steps = [f"VAR {found[0]} = {value}"]
        steps += [f"VAR {name} = VAR {before} " for before, name in pairwise(found)]
        # Too few lines for one assignment each: the noise's sentences become the lines.
        text = [noise] * lines if lines >= len(steps) else re.split(r"(?<=\.) ", noise) * lines
        places = sorted(rng.sample(range(len(text)), len(steps)))
        for offset, (place, step) in enumerate(zip(places, steps, strict=True)):
            text.insert(place + offset, step)
        question, at = filled(template, "\n".join(text), query=value)
        return question, at, prefix.format(num_v=len(found), query=value), found

    def example(lines: int, value: int, rng: random.Random) -> str:
        question, _, start, names = chain(lines, 3, value, rng)
        return f"{question}{start} {' '.join(names)}\n\n"

    def make(size: int, rng: random.Random, index: int) -> Prompt:
        shown, asked = rng.sample(range(10000, 99999), 2)
        lines = max(1, limit // count(noise))
        worked = example(lines, shown, rng)
        while lines > 1 and (surplus := count(worked) - limit) > 0:
            lines = max(1, lines - max(1, surplus // count(noise)))
            worked = example(lines, shown, rng)
        question, at, start, names = chain(size, 5, asked, rng)
        return Prompt(worked + question, len(worked) + at, start, names)

    return Generator(make, 1, length, "noise")


def cwe(length: int) -> Generator:
    """Ten words that come more often than the others, after a worked example; unit: a word of the list."""
    template, prefix = wording("cwe"), wording("cwe_prefix")
    words = sorted({word for kind in ("noun", "adjective", "verb") for word in word_list(kind)})
    repeats, example_words, example_repeats = (
        ((30, 3), 40, (10, 3)) if length >= 4096 else ((6, 1), 20, (3, 1))
    )

    def listing(size: int, often: int, seldom: int, rng: random.Random) -> tuple[str, int, list[str]]:
        drawn = rng.sample(words, size)
        listed = drawn[:COMMON] * often + drawn[COMMON:] * seldom
        rng.shuffle(listed)
        return *filled(template, _numbered(listed)), drawn[:COMMON]

    def make(size: int, rng: random.Random, index: int) -> Prompt:
        # lm-eval makes the example but leaves it out of the prompt; in RULER it is there.
        shown, _, answer = listing(example_words, *example_repeats, rng)
        asked, at, common = listing(size, *repeats, rng)
        worked = f"{shown}{prefix} {_numbered(answer)}\n"
        return Prompt(worked + asked, len(worked) + at, prefix, common)

    return Generator(make, 2 * COMMON, len(words), "words")


def fwe(length: int) -> Generator:
    """Coded words with zeta frequencies: rank 1 is dots, ranks 2 to 4 are asked; unit: a word of text."""
    template, prefix = wording("fwe"), wording("fwe_prefix")
    shares = [rank**-ALPHA / (math.pi**2 / 6) for rank in range(1, max(4, length // 50) + 1)]

    def make(size: int, rng: random.Random, index: int) -> Prompt:
        coded: dict[str, None] = {"...": None}
        while len(coded) < len(shares):
            coded["".join(rng.choices(string.ascii_lowercase, k=CODED))] = None
        vocabulary = list(coded)
        text = [
            word for word, share in zip(vocabulary, shares, strict=True) for _ in range(int(size * share))
        ]
        rng.shuffle(text)
        return Prompt(*filled(template, " ".join(text)), prefix, vocabulary[1:4])

    # From here on rank 4 comes at least once more often than rank 5, so that the answer is no tie.
    least = math.ceil(math.pi**2 / 6 / (4**-ALPHA - 5**-ALPHA))
    return Generator(make, least, max(least, 2 * length), "coded")


def _numbered(words: list[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))
