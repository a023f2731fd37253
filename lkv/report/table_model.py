"""A table of a report, before it has a format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lkv.report.style import style

NONE = "–"


@dataclass(frozen=True)
class Cell:
    """One figure as it is printed."""

    text: str = NONE
    interval: str = ""
    best: bool = False
    marks: str = ""


@dataclass(frozen=True)
class Row:
    """One method, a cell a budget; the full cache has one score for all budgets and no recall."""

    method: str
    scores: list[Cell]
    recalls: list[Cell]

    @property
    def label(self) -> str:
        return style(self.method).label


@dataclass(frozen=True)
class Panel:
    """One block: bounds above a rule, the evictors below it."""

    title: str
    bounds: list[Row]
    evictors: list[Row]


@dataclass(frozen=True)
class Table:
    budgets: list[int]
    panels: list[Panel]
    recall: bool  # whether there is any recall to show
    note: list[tuple[str, str]]

    def cells(self) -> Iterator[Cell]:
        for panel in self.panels:
            for row in panel.bounds + panel.evictors:
                yield from row.scores + row.recalls
