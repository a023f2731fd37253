"""LookaheadKV's arms: score against one of them, and how well each predicts on held-out prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lkv.errors import UserError
from lkv.report.figure import BUDGET, WIDTH, finish, read_figures
from lkv.report.style import benchmark_label, length_label
from lkv.results.columns import ABLATION_COLUMNS, ARMS_COLUMNS
from lkv.results.csv_files import read_csv
from lkv.results.statistics import LEVEL
from lkv.results.summarise import AVERAGE, BUILT_IN

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEXT = ("arm", "model", "benchmark", "task", "protocol", "haystack", "method")
MARKERS = ("o", "s", "^", "D", "v", "P")


def ablation(results_dir: Path) -> Figure:
    """A line of panels for each model, benchmark, length and haystack: differences, then held-out recall."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    frame = read_figures(results_dir / "ablation.csv", ABLATION_COLUMNS, TEXT)
    trained = read_csv(results_dir / "arms.csv", ARMS_COLUMNS)
    rows = frame[(frame["task"] == AVERAGE) & (frame["arm"] != "")]
    key = ["model", "benchmark", "length", "protocol", "haystack"]
    blocks = [group for _, group in rows.groupby(key, sort=False)]
    arms, budgets = list(dict.fromkeys(rows["arm"])), sorted({int(b) for b in rows["budget"]})
    if len(arms) < 2:
        raise UserError(
            f"{results_dir / 'ablation.csv'} has one arm; name others in the study's ablation.arms"
        )
    own = next(arm for arm in arms if rows.loc[rows["arm"] == arm, "diff_vs_lookaheadkv"].isna().all())
    order = [own, *(arm for arm in arms if arm != own)]
    shades = colormaps["viridis"](np.linspace(0, 0.85, len(budgets)))
    looks = {b: {"color": shades[i], "marker": MARKERS[i % 6]} for i, b in enumerate(budgets)}
    height = 0.7 + (0.1 + 0.08 * len(budgets)) * len(order)
    figure = Figure(figsize=(WIDTH, 1.1 + height * len(blocks)), layout="constrained")
    grid = figure.subplots(len(blocks), 2, squeeze=False, sharey=True, width_ratios=[3, 1])
    for (left, right), block in zip(grid, blocks, strict=True):
        _differences(left, block, order, looks)
        _recall(right, trained[trained["model"] == block["model"].iloc[0]], order)
    handles = [Line2D([], [], **look, ls="", label=f"C = {b}") for b, look in looks.items()]
    caption = (
        f"Left: an arm's score minus that of {own}, sample by sample; bars: "
        f"{100 * LEVEL:g} % intervals over samples, not over trainings. Right: on held-out training "
        "prompts, the share of the entries that the answer looks at most which the modules rank highest; "
        f"arms without a point share another arm's modules. {BUDGET}."
    )
    return finish(figure, handles, caption)


def _differences(axis: Axes, block: pd.DataFrame, order: list[str], looks: dict[int, Any]) -> None:
    means = []
    for at, budget in enumerate(looks):
        cells = block[block["budget"] == budget].set_index("arm").reindex(order)
        means.append(f"{cells['mean'].iloc[0]:.1f} at C = {budget}")
        found = cells[["diff_vs_lookaheadkv", "diff_ci_low", "diff_ci_high"]].iloc[1:].to_numpy(float)
        middle, low, high = found.T
        y = np.arange(1, len(order)) + 0.7 * ((at + 0.5) / len(looks) - 0.5)
        axis.errorbar(
            middle, y, xerr=[middle - low, high - middle], ls="", ms=4, elinewidth=0.9, **looks[budget]
        )
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(order)), order)
    axis.set_ylim(len(order) - 0.5, -0.5)
    axis.grid(axis="x")
    axis.set_xlabel(f"score minus that of {order[0]}, which has {', '.join(means)}")
    model, benchmark, length, haystack = block[["model", "benchmark", "length", "haystack"]].iloc[0]
    source = "" if haystack in ("", BUILT_IN) else f", haystack {haystack}"
    axis.set_title(f"{model}: {benchmark_label(benchmark)}, {length_label(length)}{source}", loc="left")


def _recall(axis: Axes, trained: pd.DataFrame, order: list[str]) -> None:
    known = trained.set_index("arm")["held_out_recall"]
    for at, arm in enumerate(order):
        if arm in known:
            axis.plot(known[arm], at, "o", color="black", markersize=4)
            axis.annotate(
                f"{known[arm]:.3f}",
                (known[arm], at),
                xytext=(0, 5),
                textcoords="offset points",
                ha="center",
                fontsize=7.5,
            )
    axis.margins(x=0.25)
    axis.grid(axis="x")
    axis.set_xlabel("held-out recall")
