"""Every cell of accuracy.csv as one HTML page that sorts and filters: no request leaves it."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lkv.report.note import SHORT, TIED
from lkv.report.source import template
from lkv.report.style import benchmark_label, style
from lkv.results.statistics import LEVEL

if TYPE_CHECKING:
    import pandas as pd

NONE = "–"
ANY = "all"  # the full cache's budget: its rows stay whatever budget is chosen
INTERVAL = f"{100 * LEVEL:g} % interval"
READ = (
    "Score: 0–100, the mean over the samples; for the task average the mean of the task means. Retained: per "
    "cent of the full cache's score. Δ: score minus LookaheadKV's at the same budget, over the samples that "
    "both have. p: paired sign-flip permutation test of Δ, not corrected for the number of tests. n: usable "
    "samples, of the planned ones where some are lost."
)


@dataclass(frozen=True)
class Column:
    """One column: its cells as printed, and whether a menu chooses among them."""

    head: str
    cells: list[str]
    number: bool = False
    menu: bool = False

    @property
    def choices(self) -> list[str]:
        """Different cells, in the order of the file; `ANY` is no choice of its own."""
        return [cell for cell in dict.fromkeys(self.cells) if cell != ANY]


def to_html(accuracy: pd.DataFrame, note: Iterable[tuple[str, str]]) -> str:
    """The page of an ACCURACY_COLUMNS frame whose text columns hold no nan; `note` as under the main table.

    Columns of names that all rows share are said once, above the table. The same frame gives the same text.
    """
    records = accuracy.to_dict("records")
    where = _where(records)
    shown = [column for column in where if column.head == "Method" or len(set(column.cells)) > 1]
    columns = [*shown, *_figures(records)]
    own = ("Score", SHORT, TIED)  # of the main table alone
    paragraphs = [("Columns", READ), *((lead, text) for lead, text in note if not lead.startswith(own))]
    return template("table.html.jinja", autoescape=True).render(
        columns=columns,
        rows=zip(*(column.cells for column in columns), strict=True),
        shared=[(column.head, column.cells[0]) for column in where if column not in shown],
        note=paragraphs,
        any=ANY,
    )


def _where(records: Sequence[dict[Hashable, Any]]) -> list[Column]:
    """What a cell is the figure of."""
    printed: dict[str, tuple[str, Callable[[Any], str]]] = {
        "Model": ("model", str),
        "Benchmark": ("benchmark", benchmark_label),
        "Protocol": ("protocol", lambda label: label or "unnamed"),
        "Task": ("task", str),
        "Haystack": ("haystack", lambda source: source or NONE),
        "Length": ("length", lambda tokens: f"{tokens:,}" if tokens else "natural"),
        "Method": ("method", lambda name: style(name).label),
        "Budget C": ("budget", lambda entries: f"{entries:,}" if entries else ANY),
    }
    return [
        Column(head, [show(row[key]) for row in records], key in ("length", "budget"), menu=True)
        for head, (key, show) in printed.items()
    ]


def _figures(records: Sequence[dict[Hashable, Any]]) -> list[Column]:
    def numbers(key: str, digits: int) -> list[str]:
        return [_number(row[key], digits) for row in records]

    def intervals(prefix: str) -> list[str]:
        ends = zip(numbers(f"{prefix}ci_low", 1), numbers(f"{prefix}ci_high", 1), strict=True)
        return [NONE if NONE in pair else f"[{pair[0]}, {pair[1]}]" for pair in ends]

    counts = [(int(row["n"]), int(row["n_planned"])) for row in records]
    figures = {
        "Score": numbers("mean", 1),
        INTERVAL: intervals(""),
        "Retained %": numbers("retained", 0),
        "Recall": numbers("recall_raw", 2),
        "Δ LookaheadKV": numbers("diff_vs_lookaheadkv", 1),
        f"{INTERVAL} of Δ": intervals("diff_"),
        "p": [
            "<0.001" if row["p_vs_lookaheadkv"] < 0.001 else _number(row["p_vs_lookaheadkv"], 3)
            for row in records
        ],
        "n": [f"{n:,}" if n == planned else f"{n:,} of {planned:,}" for n, planned in counts],
    }
    return [Column(head, cells, number=True) for head, cells in figures.items()]


def _number(value: float, digits: int) -> str:
    return NONE if math.isnan(value) else f"{value:z.{digits}f}".replace("-", "−")
