"""Which tokens of a prompt survive: a row a task, a strip a method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lkv.report.figure import WIDTH, finish, read_figures
from lkv.report.style import length_label, style
from lkv.results.columns import KEPT_COLUMNS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

# Colour and hatch of what lies in a bin; hatched, so that grey print tells them apart.
PARTS = {
    "answer": ("the answer", "#D55E00", ""),
    "question": ("the question", "#56B4E9", "//////"),
    "template": ("template and answer prefix", "#cccccc", ""),
}
KEY = ["benchmark", "task", "length"]


def kept(results_dir: Path) -> Figure:
    """The first model's samples, each task at its longest length, all at the middle one of the budgets."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    frame = read_figures(
        results_dir / "kept.csv", KEPT_COLUMNS, ("model", "benchmark", "task", "method", "part")
    )
    model = frame["model"].iloc[0]
    frame = frame[frame["model"] == model]
    frame = frame[frame["length"] == frame.groupby(["benchmark", "task"])["length"].transform("max")]
    budgets = sorted(set(frame["budget"]))
    budget = budgets[(len(budgets) - 1) // 2]
    maps = [rows for _, rows in frame[frame["budget"] == budget].groupby(KEY, sort=False)]
    strips = [rows["method"].nunique() + 1 for rows in maps]
    figure = Figure(figsize=(WIDTH, 1.0 + sum(0.15 * n + 0.5 for n in strips)), layout="constrained")
    axes = figure.subplots(len(maps), 1, squeeze=False, height_ratios=strips)[:, 0]
    norm = PowerNorm(0.5, 0, 1)  # most bins keep little
    for axis, rows in zip(axes, maps, strict=True):
        mesh = _draw(axis, rows, norm)
        task, length = rows[["task", "length"]].iloc[0]
        axis.set_title(f"{task}, {length_label(int(length))}", loc="left")
    axes[-1].set_xlabel("position in the prompt (tokens)")
    figure.colorbar(
        mesh, ax=list(axes), label="kept (share of layers and KV heads)", ticks=[0, 0.1, 0.25, 0.5, 1],
        fraction=0.03, pad=0.01,
    )  # fmt: skip
    found = set(frame["part"])
    handles = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=label)
        for part, (label, colour, hatch) in PARTS.items()
        if part in found
    ]
    caption = (
        f"{model}, the first sample of each task, C = {budget} entries kept per layer and KV head. Look "
        "between the lines below the answer: a dark bin survives in many heads, a white one in none. The "
        "oracle, where it is shown, keeps what the model's own answer looks at."
    )
    return finish(figure, handles, caption)


def _draw(axis: Axes, rows: pd.DataFrame, norm: Any) -> QuadMesh:
    """One prompt: what lies where on top, then a strip a method, on one position axis."""
    grid = rows.pivot(index="method", columns="start", values="kept").loc[list(dict.fromkeys(rows["method"]))]
    edges = [*grid.columns, rows["end"].max()]
    mesh = axis.pcolormesh(
        edges, range(1, len(grid) + 2), grid.to_numpy(), cmap="Greys", norm=norm, rasterized=True
    )  # as paths a map would be megabytes
    for bin_ in rows.drop_duplicates("start").to_dict("records"):
        if bin_["part"] in PARTS:
            _, colour, hatch = PARTS[bin_["part"]]
            width = bin_["end"] - bin_["start"]
            axis.barh(0.5, width, 0.8, bin_["start"], color=colour, hatch=hatch, edgecolor="white", lw=0)
    axis.hlines(range(1, len(grid) + 1), 0, edges[-1], color="white", lw=1)
    for side in _sides(rows.loc[rows["part"] == "answer", ["start", "end"]].drop_duplicates()):
        axis.vlines(side, 0.9, len(grid) + 1, color=PARTS["answer"][1], lw=0.7)
    axis.set_xlim(0, edges[-1])
    axis.set_ylim(len(grid) + 1, 0)
    axis.set_yticks([at + 1.5 for at in range(len(grid))], [style(m).label for m in grid.index], fontsize=7)
    axis.tick_params(axis="y", length=0)
    axis.spines[:].set_visible(False)
    return mesh


def _sides(bins: pd.DataFrame) -> list[int]:
    """Where runs of adjacent bins begin and end."""
    return sorted(set(bins["start"]) ^ set(bins["end"]))
