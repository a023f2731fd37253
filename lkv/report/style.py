"""How methods, phases and benchmarks are named and drawn: one table each, for the table and all plots."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


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


STYLES = {
    "full": Style("Full cache", "#000000", "", (0, (6, 2)), bound=True),
    "oracle": Style("Oracle", "#555555", "", (0, (1, 1.2)), bound=True),
    "random": Style("Random", "#999999", "x", (0, (3, 2))),
    "streamingllm": Style("StreamingLLM", "#56B4E9", "v", (0, (5, 1.5))),
    "h2o": Style("H2O", "#E69F00", "P", (0, (4, 1, 1, 1))),
    "snapkv": Style("SnapKV", "#0072B2", "s", (0, (3, 1))),
    "pyramidkv": Style("PyramidKV", "#CC79A7", "^", (0, (1, 1))),
    "laq": Style("LAQ", "#009E73", "D", (0, (8, 2, 1, 2))),
    "laqpp": Style("LAQ++", "#009E73", "d", (0, (3, 1, 1, 1, 1, 1))),
    "speckv": Style(
        "SpecKV", "#B8A800", "h", (0, (2, 1))
    ),  # Okabe and Ito's yellow, darkened for white paper
    "judgeq": Style("Judge Q", "#7A4B00", "<", (0, (5, 1, 2, 1))),
    "lookaheadkv": Style("LookaheadKV", "#D55E00", "o"),
}

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
    """The style of a method, or of an arm of it (`lookaheadkv/nolookups`). What has none gets its raw name;
    what has no look of its own, one that its name decides.
    """
    if method in STYLES:
        return STYLES[method]
    look = zlib.crc32(method.encode())
    of, _, arm = method.partition("/")
    if arm and of in STYLES:
        return Style(f"{STYLES[of].label}, {arm}", "#8C3A00", "*>pX8"[look % 5], (0, (2, 1.2)))
    colour = ("#444444", "#7A4B00", "#4B0092")[look % 3]
    return Style(method, colour, "*>pX8"[look // 3 % 5], (0, (2 + look % 4, 1.5)))


def benchmark_label(benchmark: str) -> str:
    return BENCHMARKS.get(benchmark, benchmark)


def span(counts: Iterable[int]) -> str:
    """`4 to 200`; one number where all are equal."""
    numbers = [int(count) for count in counts]
    return " to ".join(f"{number:,}" for number in sorted({min(numbers), max(numbers)}))


def length_label(length: int) -> str:
    """`1,024 tokens`; length 0 means that the benchmark's prompts have lengths of their own."""
    return f"{length:,} tokens" if length else "natural lengths"
