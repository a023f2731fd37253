"""How methods, phases and benchmarks are named and drawn: one table each, for the table and all plots."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lkv.registry import FULL, METHODS, described


@dataclass(frozen=True)
class Style:
    """Colours are Okabe and Ito's (colour-blind safe); marker and line differ too, for grey print.

    `bound`: not a competitor but the room that competitors have (full cache, oracle).
    """

    label: str
    colour: str
    marker: str
    line: Any = "-"
    bound: bool = False


FULL_CACHE = Style("Full cache", "#000000", "", (0, (6, 2)), bound=True)

# Overhead phases in the order of the pipeline: label, colour, hatch.
PHASES = {
    "rows": ("extra rows in prefill", "#56B4E9", ""),
    "lora": ("LoRA on them", "#F0E442", "xxxx"),
    "draft": ("draft", "#E69F00", "////"),
    "observe": ("observe", "#0072B2", ""),
    "select": ("select", "#009E73", "\\\\\\\\"),
    "compact": ("compact", "#CC79A7", "...."),
}

BENCHMARKS = {"ruler": "RULER", "longbench": "LongBench"}


def style(method: str) -> Style:
    """The style of a method, as it is registered, or of a variant of it (`lookaheadkv/nolookups`).

    Of an unknown method the label is its raw name, and the rest follows from the name.
    """
    if method == FULL:
        return FULL_CACHE
    if method in METHODS and (known := described(method)).label:
        return Style(known.label, known.colour, known.marker, known.line, bound=known.knows_answer)
    draw = zlib.crc32(method.encode())
    of, _, variant = method.partition("/")
    if variant and of in METHODS:
        return Style(f"{style(of).label}, {variant}", "#8C3A00", "*>pX8"[draw % 5], (0, (2, 1.2)))
    colour = ("#444444", "#7A4B00", "#4B0092")[draw % 3]
    return Style(method, colour, "*>pX8"[draw // 3 % 5], (0, (2 + draw % 4, 1.5)))


def benchmark_label(benchmark: str) -> str:
    return BENCHMARKS.get(benchmark, benchmark)


def span(counts: Iterable[int]) -> str:
    """`4 to 200`; one number where all are equal."""
    numbers = [int(count) for count in counts]
    return " to ".join(f"{number:,}" for number in sorted({min(numbers), max(numbers)}))


def length_label(length: int) -> str:
    """`1,024 tokens`; length 0 means that the benchmark's prompts have lengths of their own."""
    return f"{length:,} tokens" if length else "natural lengths"
