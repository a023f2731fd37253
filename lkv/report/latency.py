"""Overhead over the plain prefill by length and method: bars of a few lengths, or curves over many."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lkv.errors import UserError
from lkv.report.bars import ZOOM, bars_of, draw, handles
from lkv.report.curves import curves
from lkv.report.figure import BUDGET, WIDTH, finish, read_figures
from lkv.report.style import span
from lkv.results.columns import LATENCY_COLUMNS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MANY = 4  # lengths, from which on curves say more than bars
TEXT = ("model", "weights", "method", "implementation", "phase", "status", "device", "backend", "dtype")


def latency(results_dir: Path) -> Figure:
    """Panels for each model (and budget, where few lengths are shown as bars)."""
    frame = read_figures(results_dir / "latency.csv", LATENCY_COLUMNS, TEXT)
    evicted = frame[frame["method"] != "full"]
    if evicted.empty:
        raise UserError(
            f"{results_dir / 'latency.csv'} times only the full cache; add methods to `latency: methods` "
            "in the study's config and measure again"
        )
    if evicted["length"].nunique() >= MANY:
        return curves(frame, _caption(frame))
    return _bars(frame, evicted)


def _bars(frame: pd.DataFrame, evicted: pd.DataFrame) -> Figure:
    """A row of panels for each model and budget; bars are grouped by length."""
    from matplotlib.figure import Figure

    rows = []
    for (model, budget), group in evicted.groupby(["model", "budget"], sort=False):
        plain = frame[(frame["model"] == model) & (frame["method"] == "full")]
        rows.append((f"{model}, C = {budget}", bars_of(group, plain)))
    ends = [bar.end for _, bars in rows for bar in bars if bar.end > 0]
    small = [end for end in ends if end < max(ends) / ZOOM]
    limits = [max(ends, default=1.0), *([max(small)] if small else [])]
    heights = [len(bars) + 2.5 for _, bars in rows]
    figure = Figure(figsize=(WIDTH, 1.0 + 0.19 * sum(heights)), layout="constrained")
    grid = figure.subplots(
        len(rows), len(limits), squeeze=False, sharey="row", gridspec_kw={"height_ratios": heights}
    )
    for (title, bars), axes in zip(rows, grid, strict=True):
        for at, (axis, limit) in enumerate(zip(axes, limits, strict=True)):
            draw(axis, bars, limit, heading=at == 0)
            axis.set_title("the same, long bars cut" if at else title, loc="left")
    drawn = [bar for _, bars in rows for bar in bars]
    return finish(figure, handles(drawn), f"{_caption(frame)} Linear scale.")


def _caption(frame: pd.DataFrame) -> str:
    facts = [
        text.format(" / ".join(dict.fromkeys(value for value in frame[column] if value)))
        for column, text in (
            ("device", "{}"), ("backend", "attention {}"), ("dtype", "{}"), ("weights", "{} weights"),
            ("implementation", "implementation: {}"),
        )
        if frame[column].any()
    ]  # fmt: skip
    repeats = frame["repeats"].dropna()
    return f"{'; '.join(facts)}; medians of {span(repeats) if len(repeats) else '?'} runs. {BUDGET}."
