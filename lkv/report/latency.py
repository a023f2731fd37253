"""Overhead over the plain prefill by length and method, split into the pipeline's phases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lkv.errors import UserError
from lkv.records import LATENCY_COLUMNS
from lkv.report.figure import BUDGET, WIDTH, finish, read_figures
from lkv.report.style import PHASES, length_label, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ZOOM = 8  # where overheads differ by more, a second panel is cut at the smaller ones
ROOM = 1.6  # of the longest bar: room for the values
TEXT = ("model", "weights", "method", "implementation", "phase", "status", "device", "backend", "dtype")


@dataclass(frozen=True)
class Bar:
    """One line of a panel: a method, or (no label) a heading with a length and its plain prefill."""

    label: str
    text: str
    overhead: float = math.nan  # ms, measured whole; nan where there is none
    phases: dict[str, float] = field(default_factory=dict)  # ms

    @property
    def end(self) -> float:
        """Where the drawing ends; a phase that is negative by noise is not drawn."""
        whole = 0.0 if math.isnan(self.overhead) else self.overhead
        return max(0.0, whole, sum(max(0.0, ms) for ms in self.phases.values()))


def latency(results_dir: Path) -> Figure:
    """A row of panels for each model and budget; bars are grouped by length."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    frame = read_figures(results_dir / "latency.csv", LATENCY_COLUMNS, TEXT)
    evicted = frame[frame["method"] != "full"]
    if evicted.empty:
        raise UserError(
            f"{results_dir / 'latency.csv'} times only the full cache; add methods to `latency: methods` "
            "in the study's config and measure again"
        )
    rows = []
    for (model, budget), group in evicted.groupby(["model", "budget"], sort=False):
        plain = frame[(frame["model"] == model) & (frame["method"] == "full")]
        rows.append((f"{model}, C = {budget}", _bars(group, plain)))
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
            _draw(axis, bars, limit, heading=at == 0)
            axis.set_title("the same, long bars cut" if at else title, loc="left")
    used = [phase for phase in PHASES if any(phase in bar.phases for _, bars in rows for bar in bars)]
    handles: list[Any] = [
        Patch(facecolor=PHASES[p][1], hatch=PHASES[p][2], edgecolor="white", label=PHASES[p][0]) for p in used
    ]
    handles.append(
        Line2D([], [], color="black", marker="|", markersize=9, mew=1.6, ls="", label="measured whole")
    )
    return finish(figure, handles, _caption(frame))


def _bars(group: pd.DataFrame, plain: pd.DataFrame) -> list[Bar]:
    """Top to bottom: a heading a length, then its methods in the order of the file."""
    bars = []
    # Named only where one method was timed in more than one implementation.
    several = group.groupby("method")["implementation"].nunique().max() > 1
    for length in sorted(group["length"].unique()):
        rows = group[group["length"] == length]
        same = plain[(plain["length"] == length) & (plain["phase"] == "total") & (plain["status"] == "ok")]
        prefill = "not measured" if same.empty else _time(same["median_ms"].iloc[0])
        bars.append(Bar("", f"{length_label(length)}, plain prefill {prefill}"))
        for (method, implementation), cell in rows.groupby(["method", "implementation"], sort=False):
            label = style(str(method)).label + (f" ({implementation})" if several else "")
            bars.append(_bar(label, cell))
    return bars


def _bar(label: str, cell: pd.DataFrame) -> Bar:
    total = cell[cell["phase"] == "total"]
    failed = cell.loc[cell["status"] != "ok", "status"]
    if len(failed):
        return Bar(label, f"not measured: {failed.iloc[0] or 'no reason given'}")
    if total["overhead_ms"].isna().all():
        return Bar(label, "not measured: no total")
    medians = cell.dropna(subset="median_ms").set_index("phase")["median_ms"]
    phases = {phase: float(medians[phase]) for phase in PHASES if phase in medians}
    overhead, share = total["overhead_ms"].iloc[0], total["overhead_pct"].iloc[0]
    return Bar(label, f"{_time(overhead)} ({share:+.{_digits(share)}f} %)", overhead, phases)


def _draw(axis: Axes, bars: Sequence[Bar], limit: float, heading: bool) -> None:
    """Horizontal stacked bars, first on top; a bar beyond `limit` runs off the panel, with its value."""
    for at, bar in enumerate(bars):
        left = 0.0
        for phase, ms in bar.phases.items():
            _, colour, hatch = PHASES[phase]
            axis.barh(at, max(0.0, ms), 0.72, left, color=colour, hatch=hatch, edgecolor="white", lw=0.3)
            left += max(0.0, ms)
        if not bar.phases:
            axis.barh(at, bar.end, 0.72, color="#bbbbbb")
        where, side, text = bar.end + 0.03 * limit, "left", bar.text
        if bar.end > limit:
            where, side = 0.92 * ROOM * limit, "right"
        elif not math.isnan(bar.overhead):
            axis.plot(max(0.0, bar.overhead), at, "|", color="black", markersize=9, mew=1.6, zorder=3)
        box = {"boxstyle": "square,pad=0.25", "facecolor": "white", "edgecolor": "none"}
        if bar.label:
            axis.text(where, at, text, ha=side, va="center", fontsize=7.5, bbox=box)
        elif heading:
            axis.text(0, at + 0.1, text, va="center", fontweight="bold", bbox=box)
    axis.set_xlim(0, ROOM * limit)
    axis.set_ylim(len(bars) - 0.4, -0.6)
    axis.set_yticks(range(len(bars)), [bar.label for bar in bars])
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.grid(axis="x")
    axis.set_xlabel("overhead over plain prefill (ms)")


def _time(ms: float) -> str:
    value, unit = (ms / 1000, "s") if abs(ms) >= 1000 else (ms, "ms")
    return f"{value:,.{_digits(value)}f} {unit}"


def _digits(value: float) -> int:
    """Decimals that leave about three figures, two at most."""
    return 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2


def _caption(frame: pd.DataFrame) -> str:
    facts = [
        text.format(" / ".join(dict.fromkeys(value for value in frame[column] if value)))
        for column, text in (
            ("device", "{}"), ("backend", "attention {}"), ("dtype", "{}"), ("weights", "{} weights"),
            ("implementation", "implementation: {}"),
        )
        if frame[column].any()
    ]  # fmt: skip
    repeats = frame["repeats"].dropna().astype(int)
    ends = (
        " to ".join(str(count) for count in sorted({repeats.min(), repeats.max()})) if len(repeats) else "?"
    )
    return f"{'; '.join(facts)}; medians of {ends} runs. Linear scale. {BUDGET}."
