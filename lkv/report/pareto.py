"""Score against overhead: what a method gives for the time that it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lkv.errors import UserError
from lkv.report.figure import BUDGET, WIDTH, finish, line_look, listing, method_handle, panels, read_figures
from lkv.report.latency import TEXT
from lkv.report.source import Block, read_blocks
from lkv.report.style import length_label, style
from lkv.results.columns import LATENCY_COLUMNS
from lkv.results.statistics import LEVEL

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE = 20  # a panel whose overheads differ by more gets a logarithmic axis, which its label says
COLUMNS = 3


@dataclass(frozen=True)
class Point:
    """One method at one budget, and where its overhead was measured."""

    method: str
    budget: int
    score: float
    low: float
    high: float
    overhead: float  # per cent of the plain prefill
    timed_length: int
    timed_budget: int


def pareto(results_dir: Path) -> Figure:
    """A panel for each model, benchmark, length and haystack; a line a method, a point a budget."""
    from matplotlib.figure import Figure

    blocks = read_blocks(results_dir, arms=False)  # which were not timed
    path = results_dir / "latency.csv"
    frame = read_figures(path, LATENCY_COLUMNS, TEXT)
    timed = frame[(frame["phase"] == "total") & (frame["status"] == "ok") & (frame["method"] != "full")]
    timed = timed.dropna(subset="overhead_pct")
    drawn = [(block, points) for block in blocks if (points := _points(block, timed))]
    if not drawn:
        raise UserError(
            f"{path} times no method and model that accuracy.csv scores; "
            "measure the same methods: `latency: methods` in the study's config"
        )
    columns = min(COLUMNS, len(drawn))
    lines = math.ceil(len(drawn) / columns)
    width = WIDTH if columns > 1 else 5.2
    figure = Figure(figsize=(width, 1.5 + 2.8 * lines), layout="constrained")
    for axis, panel in zip(panels(figure, len(drawn), columns), drawn, strict=True):
        _draw(axis, *panel)
    shown = {point.method for _, points in drawn for point in points}
    methods = list(dict.fromkeys(method for block, _ in drawn for method in block.average["method"]))
    handles = [method_handle(method) for method in methods if method in shown or method == "full"]
    budgets = sorted({point.budget for _, points in drawn for point in points})
    left_out = [style(method).label for method in methods if method not in shown and method != "full"]
    caption = (
        f"Averages over tasks; bars: {100 * LEVEL:g} % bootstrap intervals. Markers grow with the budget C "
        f"({listing(budgets)}) and stand at the overhead that was measured. {BUDGET}. "
        f"{f'Not timed, so not shown: {listing(left_out)}. ' if left_out else ''}"
        f"Overhead: {', '.join(listing(timed[column]) for column in ('device', 'dtype', 'weights'))} weights."
    )
    return finish(figure, handles, caption)


def _points(block: Block, timed: pd.DataFrame) -> list[Point]:
    """The average row's cells that have a measured overhead."""
    points = []
    of_model = timed[timed["model"] == block.model]
    for cell in block.average.dropna(subset="mean").to_dict("records"):
        rows = of_model[of_model["method"] == cell["method"]]
        if cell["method"] == "full" or rows.empty:
            continue
        # Nearest measured length (the longest where prompts have lengths of their own), then nearest budget;
        # of several implementations the fastest.
        target = block.length or rows["length"].max()
        rows = rows.assign(
            far=np.abs(np.log(rows["length"] / target)), off=np.abs(np.log(rows["budget"] / cell["budget"]))
        )
        row = rows.sort_values(["far", "off", "overhead_pct"], kind="stable").iloc[0]
        figures = (cell["mean"], cell["ci_low"], cell["ci_high"], float(row["overhead_pct"]))
        points.append(
            Point(cell["method"], int(cell["budget"]), *figures, int(row["length"]), int(row["budget"]))
        )
    return points


def _draw(axis: Axes, block: Block, points: Sequence[Point]) -> None:
    overheads = [point.overhead for point in points]
    positive = [overhead for overhead in overheads if overhead > 0]
    wide = bool(positive) and max(positive) > WIDE * min(positive)
    if wide:
        axis.set_xscale("symlog", linthresh=1)
    budgets = sorted({int(budget) for budget in block.average["budget"] if budget})
    for method in dict.fromkeys(point.method for point in points):
        own = [point for point in points if point.method == method]
        look = line_look(method)
        axis.plot([p.overhead for p in own], [p.score for p in own], **look | {"marker": ""})
        for point in sorted(own, key=lambda p: -p.budget):  # a small marker stays visible before a large one
            bars = [[point.score - point.low], [point.high - point.score]]
            size = _size(point.budget, budgets)
            settings = {
                "color": look["color"],
                "marker": look["marker"],
                "markersize": size,
                "zorder": 3,
                "mec": "white",
                "mew": 0.6,
            }
            axis.errorbar(
                [point.overhead], [point.score], bars, elinewidth=0.7, ecolor=look["color"], **settings
            )
    full = block.average.loc[block.average["method"] == "full", "mean"]
    if len(full):
        axis.axhline(full.iloc[0], **line_look("full") | {"marker": ""})
    lengths = listing(
        length_label(point.timed_length) for point in sorted(points, key=lambda p: p.timed_length)
    )
    same = all(point.timed_budget == point.budget for point in points)
    at_budget = "each C" if same else "C = " + listing(sorted({point.timed_budget for point in points}))
    scale = "\nlinear up to 1 %, logarithmic above" if wide else ""
    label = f"overhead over plain prefill (%)\nmeasured at {lengths},\n{at_budget}{scale}"
    axis.set_xlabel(label, fontsize=8)
    axis.set_ylabel("score (0–100)")
    axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.grid()
    axis.set_title(block.heading, loc="left", fontsize=8.5)


def _size(budget: int, budgets: Sequence[int]) -> float:
    """Marker size in points: steps from the smallest to the largest budget."""
    return 5.0 + 4.0 * list(budgets).index(budget) / max(1, len(budgets) - 1)
