"""The README's figure: the scores of one study beside the milliseconds of another.

    python -m lkv.report.hero --results STUDY --latency STUDY --out docs/hero.png

Left: mean score over the budget at one prompt length. Right: what each method adds to a plain prefill. Both
panels show the methods that both studies have, and both titles name their model. The same files give the
same bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lkv.claims.evidence import thousands
from lkv.errors import UserError
from lkv.files.atomic import atomic_write
from lkv.report.curves import totals
from lkv.report.figure import QUIET, RC, WIDTH, line_look, read_figures, to_bytes
from lkv.report.source import Block, read_blocks
from lkv.report.style import benchmark_label, style
from lkv.results.columns import LATENCY_COLUMNS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT = 3.0  # inches
GAP = 0.062  # between two labels, as a share of the panel's height
DARKER = 0.78  # of a line's colour, for the text beside it: pale colours are hard to read as text


def hero(
    results: Path, latency: Path, length: int = 4096, model: str | None = None, prompt: int = 32768
) -> Figure:
    """Both panels: scores at `length` tokens, and times of `model` (the first one timed) at `prompt` tokens.

    Raises UserError where either study has no such rows.
    """
    from matplotlib.figure import Figure

    block = headline(read_blocks(results, arms=False), results, length)
    times = added(read_figures(latency / "latency.csv", LATENCY_COLUMNS, ("method", "status")), model, prompt)
    methods = [name for name in dict.fromkeys(block.average["method"]) if name in set(times["method"])]
    if not methods:
        raise UserError(f"no method of {results} is timed in {latency} at {prompt} tokens")
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1.2, 1]})
    scores(left, block, methods)
    bars(right, times.set_index("method").loc[methods])
    return figure


def headline(blocks: list[Block], results: Path, length: int) -> Block:
    """The first block of that length, whichever benchmark it is of."""
    for block in blocks:
        if block.length == length:
            return block
    raise UserError(f"{results} has no average at {length} tokens; name one of its lengths with --length")


def added(frame: pd.DataFrame, model: str | None, prompt: int) -> pd.DataFrame:
    """`total` rows of one model and prompt length, at the smallest budget: one a method."""
    frame = frame[(frame["model"] == (model or frame["model"].iloc[0])) & (frame["length"] == prompt)]
    evicting = frame[frame["method"] != "full"]
    rows = [totals(evicting, method).nsmallest(1, "budget") for method in dict.fromkeys(evicting["method"])]
    if not rows:
        raise UserError(f"nothing is timed at {prompt} tokens; name another length with --prompt")
    import pandas as pd

    return pd.concat(rows)


def scores(axis: Axes, block: Block, methods: list[str]) -> None:
    """Score over budget; each line is labelled where it ends, the full cache along its line."""
    average = block.average
    budgets = sorted({int(budget) for budget in average["budget"] if budget})
    whole = float(average.loc[average["method"] == "full", "mean"].iloc[0])
    axis.axhline(whole, **line_look("full") | {"marker": "", "linewidth": 1.0})
    axis.annotate(
        f"full cache: {whole:.1f}", (budgets[0], whole), (0, 3), textcoords="offset points", fontsize=8.5
    )
    ends = {}
    for method in methods:
        rows = average[average["method"] == method].sort_values("budget")
        axis.plot(rows["budget"], rows["mean"], **line_look(method))
        ends[method] = float(rows["mean"].iloc[-1])
    axis.set_xscale("log", base=2)
    axis.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
    axis.minorticks_off()
    axis.set_xlim(budgets[0] / 1.15, budgets[-1] * 1.12)
    top = 1.14 * max(whole, *ends.values())
    axis.set_ylim(0, top)
    for method, height in spread(ends, GAP * top).items():
        axis.annotate(
            style(method).label,
            (budgets[-1], ends[method]),
            (budgets[-1] * 1.45, height),
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "#bbbbbb", "lw": 0.6, "shrinkA": 1, "shrinkB": 5},
            **words(method),
        )
    axis.grid(axis="y")
    axis.set_xlabel("C: cache entries kept per layer and KV head")
    axis.set_ylabel("score")
    what = f"{benchmark_label(block.benchmark)} score by cache budget"
    title(axis, what, f"{block.model}, prompts of {thousands(block.length)} tokens")


def bars(axis: Axes, times: pd.DataFrame) -> None:
    """Milliseconds on top of the plain prefill, the least on top; each bar has its value."""
    times = times.sort_values("overhead_ms")
    most = times["overhead_ms"].max()
    for at, (method, row) in enumerate(times.iterrows()):
        name = str(method)
        axis.barh(at, row["overhead_ms"], 0.62, color=style(name).colour)
        ms, share = row["overhead_ms"], row["overhead_pct"]
        text = f"{ms:.{0 if ms >= 100 else 2}{'f' if ms >= 100 else 'g'}} ms ({share:.2g} %)"
        axis.text(row["overhead_ms"] + 0.02 * most, at, text, va="center", fontsize=8.5)
    axis.set_yticks(range(len(times)), [style(str(method)).label for method in times.index])
    for label, method in zip(axis.get_yticklabels(), times.index, strict=True):
        label.set(**words(str(method)))
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(times) - 0.4, -0.6)
    axis.set_xlim(0, 1.55 * most)
    axis.set_xticks([tick for tick in axis.get_xticks() if tick <= 1.1 * most])
    axis.grid(axis="x")
    axis.set_xlabel("milliseconds (share of the prefill)")
    first = times.iloc[0]
    shape = "'s shape" if first["weights"] == "random" else ""
    of = f"{first['model']}{shape}, {thousands(int(first['length']))} tokens, C = {first['budget']:.0f}"
    title(axis, "Time added to the prefill", of, -0.42)


def title(axis: Axes, what: str, of: str, start: float = 0.0) -> None:
    """What a panel shows and, below it, of which model; `start` is where, in widths of the panel."""
    axis.set_title(of, loc="left", fontsize=8.5, color=QUIET, pad=8, x=start)
    axis.annotate(
        what,
        (start, 1),
        (0, 21),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=10,
        fontweight="bold",
    )


def words(method: str) -> dict[str, Any]:
    """How a method's name is set: in its colour, LookaheadKV's own in bold."""
    from matplotlib.colors import to_rgb

    weight = "bold" if method == "lookaheadkv" else "normal"
    return {"color": tuple(DARKER * part for part in to_rgb(style(method).colour)), "fontweight": weight}


def spread(ends: Mapping[str, float], gap: float) -> dict[str, float]:
    """Heights at least `gap` apart, as near to the lines' ends as that allows, in the same order."""
    order = sorted(ends, key=lambda name: ends[name])
    groups: list[list[str]] = []

    def centre(names: list[str]) -> float:
        return sum(ends[name] for name in names) / len(names)

    for name in order:
        groups.append([name])
        while len(groups) > 1:
            low, high = groups[-2:]
            if centre(high) - centre(low) >= gap * (len(low) + len(high)) / 2:
                break
            groups[-2:] = [low + high]
    return {
        name: centre(names) + gap * (at - (len(names) - 1) / 2)
        for names in groups
        for at, name in enumerate(names)
    }


def main(argv: list[str] | None = None) -> None:
    from matplotlib import rc_context

    parser = argparse.ArgumentParser(
        prog="python -m lkv.report.hero", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--results", type=Path, required=True, help="study with accuracy.csv")
    parser.add_argument("--latency", type=Path, required=True, help="study with latency.csv")
    parser.add_argument("--length", type=int, default=4096, help="prompt length of the scores (4096)")
    parser.add_argument("--model", help="model of the times (the first one in latency.csv)")
    parser.add_argument("--prompt", type=int, default=32768, help="prompt length of the times (32768)")
    parser.add_argument("--out", type=Path, required=True, help="a .png, .svg or .pdf")
    args = parser.parse_args(argv)
    with rc_context(RC):
        figure = hero(args.results, args.latency, args.length, args.model, args.prompt)
        content = to_bytes(figure, args.out.suffix.removeprefix("."))
    with atomic_write(args.out, "wb") as stream:
        stream.write(content)


if __name__ == "__main__":
    main()
