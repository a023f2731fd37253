"""Recall of the oracle's top-C by layer and budget: a heat map a method."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lkv.report.figure import BUDGET, WIDTH, finish, listing, panels, read_figures
from lkv.report.style import length_label, span, style
from lkv.results.columns import RECALL_COLUMNS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

COLOURS = "cividis"  # perceptually uniform, the same in grey and to colour-blind readers
COLUMNS = 8  # panels side by side at most
UPRIGHT = 3  # with more budgets the numbers above them stand on end


def recall(results_dir: Path) -> Figure:
    """Rows of panels a model, a panel a method; the oracle, whose recall is 1 by definition, is left out."""
    from matplotlib.figure import Figure

    frame = read_figures(results_dir / "recall_by_layer.csv", RECALL_COLUMNS, ("model", "task", "method"))
    shown = frame[[not style(method).bound for method in frame["method"]]]
    if shown.empty:  # the oracle alone
        shown = frame
    models = {str(model): rows for model, rows in shown.groupby("model", sort=False)}
    most = max(rows["method"].nunique() for rows in models.values())
    columns = math.ceil(most / math.ceil(most / COLUMNS))  # lines of like length
    lines = [math.ceil(rows["method"].nunique() / columns) for rows in models.values()]
    figure = Figure(figsize=(WIDTH, 0.9 + 2.5 * sum(lines)), layout="constrained")
    parts = figure.subfigures(len(models), 1, squeeze=False, height_ratios=lines)
    for part, (model, rows) in zip(parts[:, 0], models.items(), strict=True):
        part.suptitle(model, fontsize=9.5)
        methods = list(dict.fromkeys(rows["method"]))
        for at, axis in enumerate(panels(part, len(methods), columns, sharey=True)):
            mesh = _draw(axis, methods[at], rows[rows["method"] == methods[at]])
            if at % columns == 0:
                axis.set_ylabel("layer")
        part.supxlabel("budget C", fontsize=9)
        part.colorbar(mesh, ax=list(part.axes), label="recall of the oracle's top-C", fraction=0.04, pad=0.01)
    tasks = len(shown[["benchmark", "task"]].drop_duplicates())
    lengths = listing(length_label(int(length)) for length in sorted(set(shown["length"])))
    caption = (
        "Look for dark rows: layers in which a method misses what the model's own answer will look at. "
        "Numbers: mean over layers. Recall: share of the C entries that the answer looks at most which are "
        "among the C that the method ranks highest, nothing pooled or forced (methods that differ in that "
        f"alone are equal here). Mean over KV heads and tasks; tasks: {tasks}; lengths: {lengths}; samples "
        f"of each: {span(shown['n'])}. {BUDGET}."
    )
    return finish(figure, [], caption)


def _draw(axis: Axes, method: str, rows: pd.DataFrame) -> QuadMesh:
    """One panel: tasks have equal weight, and heads within them."""
    by_task = rows.groupby(["benchmark", "task", "length", "layer", "budget"])["recall"].mean()
    grid = by_task.groupby(["layer", "budget"]).mean().unstack("budget")
    layers, budgets = list(grid.index), list(grid.columns)
    mesh = axis.pcolormesh(
        range(len(budgets) + 1), range(len(layers) + 1), grid.to_numpy(), cmap=COLOURS, vmin=0, vmax=1
    )
    axis.set_ylim(len(layers), 0)
    step = max(1, -(-len(layers) // 8))
    axis.set_yticks([at + 0.5 for at in range(0, len(layers), step)], layers[::step], fontsize=8)
    axis.set_xticks([at + 0.5 for at in range(len(budgets))], budgets, fontsize=7, rotation=90)
    turned = len(budgets) > UPRIGHT
    look: Any = {"ha": "center", "va": "bottom", "fontsize": 6.5, "rotation": 90 if turned else 0}
    for at, mean in enumerate(grid.mean()):
        axis.text(at + 0.5, -0.012 * len(layers), f"{mean:.2f}".removeprefix("0"), **look)
    axis.set_title(style(method).label, loc="left", fontsize=8, pad=16 if turned else 12)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return mesh
