"""The KL curve of each training arm, and its held-out KL where provenance.json has it."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lkv.report.figure import WIDTH, finish, listing, read_figures
from lkv.report.source import read_provenance
from lkv.results.columns import TRAINING_COLUMNS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNEQUAL = 4  # times as many steps as the shortest run: with more, steps are on a log scale
FEW = 3  # arms, up to which the held-out points have numbers beside them
SMOOTH = 20  # the strong line is the mean over this part of the shortest run: one twentieth
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES: tuple[Any, ...] = (
    "-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (8, 2)), (0, (2, 1)), (0, (6, 1, 1, 1, 1, 1)),
)  # fmt: skip


def training(results_dir: Path) -> Figure:
    """A panel a model, a line an arm: KL of each step, faint, and its running mean, strong."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator

    frame = read_figures(results_dir / "training.csv", TRAINING_COLUMNS, ("model", "arm"))
    adapters = read_provenance(results_dir).get("adapters") or {}
    models, arms = list(dict.fromkeys(frame["model"])), list(dict.fromkeys(frame["arm"]))
    many = len(COLOURS)  # arms; the next as many have the same colours with other lines
    looks = {arm: (COLOURS[at % many], LINES[(at + at // many) % many]) for at, arm in enumerate(arms)}
    width = WIDTH if len(arms) > FEW else max(5.0, min(WIDTH, 3.6 * len(models)))
    figure = Figure(figsize=(width, 3.3 + 0.12 * len(arms)), layout="constrained")
    grid = figure.subplots(1, len(models), squeeze=False, sharey=True)
    ends = frame.groupby(["model", "arm"])["step"].max()
    unequal, window = ends.max() > UNEQUAL * ends.min(), max(1, int(ends.min()) // SMOOTH)
    start = 1 if unequal else 0  # a log scale has no 0
    held_out, amounts = False, defaultdict[str, list[str]](list)
    for axis, model in zip(grid[0], models, strict=True):
        for arm in arms:
            rows = frame[(frame["model"] == model) & (frame["arm"] == arm)]
            if len(rows):
                facts = adapters.get(f"{model}/{arm}") or {}
                held_out |= _draw(axis, rows, facts, *looks[arm], window, start, numbers=len(arms) <= FEW)
                samples, steps = int(rows["samples"].max()), int(rows["step"].max())
                name = f"{model}, {arm}" if len(models) > 1 else arm
                amounts[f"{samples:,} samples in {steps:,} steps"].append(name)
        axis.set_title(model, loc="left")
        if unequal:
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter("{x:,g}")
        axis.set_xlim(left=start)
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
        axis.set_xlabel("optimiser step")
        axis.grid()
    grid[0][0].set_ylabel("KL(target ‖ prediction), nats")
    handles = [Line2D([], [], color=looks[a][0], linestyle=looks[a][1], lw=1.6, label=a) for a in arms]
    if held_out:
        handles.append(
            Line2D([], [], color="black", marker="o", mfc="white", ls="", label="held-out, before and after")
        )
    caption = (
        "KL: mean over layers and query heads. Faint: each step; strong: mean over the last "
        f"{window} of them. {'; '.join(f'{listing(names)}: {of}' for of, names in amounts.items())}."
    )
    return finish(figure, handles, caption)


def _draw(
    axis: Axes,
    rows: pd.DataFrame,
    facts: dict[str, Any],
    colour: str,
    line: Any,
    window: int,
    start: int,
    numbers: bool,
) -> bool:
    """One arm; says whether it has held-out points."""
    smooth = rows["kl"].rolling(window, min_periods=1).mean()
    axis.plot(rows["step"], rows["kl"], color=colour, alpha=0.3, linewidth=0.6)
    axis.plot(rows["step"], smooth, color=colour, linestyle=line, linewidth=1.6)
    before, after = facts.get("held_out_kl_before"), facts.get("held_out_kl_after")
    if before is None or after is None:
        return False
    last = int(rows["step"].max())
    for step, kl, side, up in ((start, before, 8, -11), (last, after, -6, 7)):
        axis.plot(step, kl, "o", color=colour, markerfacecolor="white", markersize=6, zorder=4, clip_on=False)
        if not numbers:
            continue
        place: Any = {"xytext": (side, up), "textcoords": "offset points"}
        axis.annotate(f"{kl:#.3g}", (step, kl), **place, ha="left" if side > 0 else "right", fontsize=8)
    return True
