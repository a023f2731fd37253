"""Score over budget: the average and each task as small multiples with interval bands, or averages alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lkv.report.figure import BUDGET, WIDTH, finish, line_look, listing, method_handle, panels
from lkv.report.note import arms_run, setting
from lkv.report.source import Block, read_blocks, read_provenance
from lkv.report.style import span, style
from lkv.results.statistics import LEVEL
from lkv.results.summarise import AVERAGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def accuracy(results_dir: Path) -> Figure:
    """A group of panels for each model, benchmark, length and haystack; the average comes first."""
    from matplotlib.figure import Figure

    blocks = read_blocks(results_dir)
    most = 1 + max(len(block.tasks) for block in blocks)
    columns = min((3, 4), key=lambda count: math.ceil(most / count))
    lines = [math.ceil((1 + len(block.tasks)) / columns) for block in blocks]
    figure = Figure(figsize=(WIDTH, 1.1 + 1.7 * sum(lines) + 0.3 * len(blocks)), layout="constrained")
    parts = figure.subfigures(len(blocks), 1, squeeze=False, height_ratios=[n + 0.2 for n in lines])
    for part, block in zip(parts[:, 0], blocks, strict=True):
        part.suptitle(block.title, fontsize=9.5)
        shown = [(AVERAGE, block.haystack), *block.tasks]
        for at, axis in enumerate(panels(part, len(shown), columns, sharex=True, sharey=True)):
            _draw(axis, block, *shown[at])
            if at % columns == 0:
                axis.set_ylabel("score (0–100)")
            if at + columns >= len(shown):
                axis.tick_params(labelbottom=True)
        part.supxlabel("budget C", fontsize=9)
    return _finish(figure, blocks, results_dir)


def averages(results_dir: Path) -> Figure:
    """A panel for each model, benchmark, length and haystack; those of a benchmark on one scale of scores."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    blocks = read_blocks(results_dir)
    columns = min(3, len(blocks))
    lines = math.ceil(len(blocks) / columns)
    figure = Figure(figsize=(max(3.6, WIDTH * columns / 3), 1.2 + 2.1 * lines), layout="constrained")
    for at, (block, axis) in enumerate(zip(blocks, panels(figure, len(blocks), columns), strict=True)):
        _draw(axis, block, AVERAGE, block.haystack)
        axis.set_title(f"{block.heading}\n{_size(block)}", loc="left", fontsize=8.5)
        alike = [other.average for other in blocks if other.benchmark == block.benchmark]
        top = max(1.0, *(rows[["mean", "ci_high"]].max().max() for rows in alike))
        axis.set_ylim(-0.03 * top, 1.06 * top)
        axis.yaxis.set_major_locator(MaxNLocator(5))
        axis.set_xlabel("budget C")
        if at % columns == 0:
            axis.set_ylabel("score (0–100)")
    return _finish(figure, blocks, results_dir)


def _finish(figure: Figure, blocks: Sequence[Block], results_dir: Path) -> Figure:
    methods = dict.fromkeys(method for block in blocks for method in block.average["method"])
    several = any(block.average["budget"].nunique() > 2 for block in blocks)  # the full cache's 0 is one
    protocols = " and ".join(dict.fromkeys(block.protocol or "unnamed" for block in blocks))
    provenance = read_provenance(results_dir)
    samples = span(n for block in blocks for n in block.rows.loc[block.rows["task"] != AVERAGE, "n"])
    caption = (
        "Look for the budget from which a method stays at the full cache's line. "
        f"{'Bands' if several else 'Bars'}: {100 * LEVEL:g} % bootstrap intervals of the evictors. "
        f"{samples} samples a task. {BUDGET}. Protocol {protocols}; {setting(provenance)}."
    )
    if arms := [style(method).label for method in methods if "/" in method]:
        caption += f" {listing(arms)}: other modules (ablation.csv), {setting(arms_run(provenance))}."
    return finish(figure, [method_handle(method) for method in methods], caption)


def _size(block: Block) -> str:
    """What the average is made of."""
    return f"average of {len(block.tasks)}, n = {block.samples}"


def _draw(axis: Axes, block: Block, task: str, haystack: str) -> None:
    rows = block.rows[(block.rows["task"] == task) & (block.rows["haystack"] == haystack)]
    for method in dict.fromkeys(rows["method"]):
        cells, look = rows[rows["method"] == method], line_look(method)
        if method == "full":
            axis.axhline(cells["mean"].iloc[0], **look | {"marker": ""})
            continue
        axis.plot(cells["budget"], cells["mean"], **look)
        if style(method).bound:
            continue
        if len(cells) > 1:
            band = {"color": look["color"], "alpha": 0.1, "linewidth": 0}
            axis.fill_between(cells["budget"], cells["ci_low"], cells["ci_high"], **band)
        else:  # a band of one budget has no width
            ends = [cells["mean"] - cells["ci_low"], cells["ci_high"] - cells["mean"]]
            bar = {"ecolor": look["color"], "elinewidth": 0.9, "capsize": 5}
            axis.errorbar(cells["budget"], cells["mean"], ends, fmt="none", **bar)
    budgets = sorted({int(budget) for budget in block.average["budget"] if budget})
    axis.set_xscale("log", base=2)
    axis.set_xticks(budgets, [str(budget) for budget in budgets], fontsize=8)
    axis.minorticks_off()
    axis.set_ylim(-4, 104)
    axis.set_yticks(range(0, 101, 25))
    axis.grid()
    if task == AVERAGE:
        axis.set_title(_size(block), loc="left", fontweight="bold", fontsize=7.5)
    else:
        axis.set_title(task, loc="left")
