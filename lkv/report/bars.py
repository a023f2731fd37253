"""Stacked bars: what a method adds to a plain prefill, split into the pipeline's phases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lkv.report.style import PHASES, length_label, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

ZOOM = 8  # where overheads differ by more, a second panel is cut at the smaller ones
ROOM = 1.6  # of the longest bar: room for the values


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


def bars_of(group: pd.DataFrame, plain: pd.DataFrame) -> list[Bar]:
    """Top to bottom: a heading a length, then its methods in the order of the file."""
    bars = []
    for length in sorted(group["length"].unique()):
        rows = group[group["length"] == length]
        same = plain[(plain["length"] == length) & (plain["phase"] == "total") & (plain["status"] == "ok")]
        prefill = "not measured" if same.empty else _time(same["median_ms"].iloc[0])
        bars.append(Bar("", f"{length_label(length)}, plain prefill {prefill}"))
        for (method, implementation), cell in rows.groupby(["method", "implementation"], sort=False):
            own = implementation.split(", ")
            ways = [name.split(", ") for name in rows.loc[rows["method"] == method, "implementation"]]
            different = [word for word in own if not all(word in way for way in ways)]
            bars.append(_bar(",\n".join([style(str(method)).label, *different]), cell))
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


def draw(axis: Axes, bars: Sequence[Bar], limit: float, heading: bool) -> None:
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


def handles(bars: Sequence[Bar]) -> list[Any]:
    """Legend entries for the phases that are drawn, and for the mark of the whole."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    used = [phase for phase in PHASES if any(phase in bar.phases for bar in bars)]
    found: list[Any] = [
        Patch(facecolor=PHASES[p][1], hatch=PHASES[p][2], edgecolor="white", label=PHASES[p][0]) for p in used
    ]
    whole = Line2D([], [], color="black", marker="|", markersize=9, mew=1.6, ls="", label="measured whole")
    return [*found, whole]
