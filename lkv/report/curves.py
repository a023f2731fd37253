"""Latency over many lengths: overhead, what it is made of at one length, decoding, and peak memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lkv.claims.evidence import thousands
from lkv.report.bars import ZOOM, Bar, bars_of, draw, handles
from lkv.report.figure import WIDTH, finish, line_look, method_handle
from lkv.report.style import style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LAYERWISE = "layer by layer"  # in the name of an implementation that evicts as the pass goes
THEORY: dict[str, Any] = {"linestyle": (0, (1, 1.6)), "linewidth": 0.9, "marker": ""}


def curves(frame: pd.DataFrame, caption: str) -> Figure:
    """A row of panels a model: overhead against length, and its parts at one length. Below them decoding and
    peak memory of the first model. All at the smallest budget."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    budget = int(frame.loc[frame["method"] != "full", "budget"].min())
    shown = frame[frame["budget"].isin([0, budget])]
    models = list(dict.fromkeys(shown["model"]))
    first = shown[shown["model"] == models[0]]
    on_gpu = first["peak_prefill_bytes"].notna().any()  # elsewhere neither peaks nor batches are measured
    lines = len(models) + int(on_gpu)
    figure = Figure(figsize=(WIDTH, 1.2 + 2.5 * lines), layout="constrained")
    grid = figure.subplots(lines, 2, squeeze=False, gridspec_kw={"width_ratios": [1, 1.1]})
    bars: list[Bar] = []
    for model, (left, right) in zip(models, grid[: len(models)], strict=True):
        of_model = shown[shown["model"] == model]
        overheads(left, of_model)
        left.set_title(f"{model}, C = {budget}", loc="left")
        bars += parts(right, of_model)
    if on_gpu:
        decoding(grid[-1][0], first)
        grid[-1][0].set_title(f"{models[0]}: decoding", loc="left")
        memory(grid[-1][1], first)
        grid[-1][1].set_title("peak memory of prefill, weights included", loc="left")
    methods = [method for method in dict.fromkeys(shown["method"]) if method != "full"]
    theory = Line2D([], [], color="black", **THEORY, label="theory")
    entries: list[Any] = [*map(method_handle, methods), theory, *handles(bars)]
    return finish(figure, entries, f"{caption} Theory: the paper's model of the device.")


def overheads(axis: Axes, frame: pd.DataFrame) -> None:
    """Milliseconds that each method adds to the plain prefill, and theory's."""
    for method in dict.fromkeys(frame["method"]):
        rows = totals(frame, method)
        if method == "full" or rows.empty:
            continue
        axis.plot(rows["length"], rows["overhead_ms"], **line_look(method))
        axis.plot(rows["length"], rows["theory_ms"], color=style(method).colour, **THEORY)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_ylabel("overhead (ms)")
    along(axis, frame)


def parts(axis: Axes, frame: pd.DataFrame) -> Sequence[Bar]:
    """Bars at the longest of the lengths at which most methods have figures, cut at the smaller overheads."""
    counts = (
        frame[(frame["phase"] == "total") & (frame["status"] == "ok")].groupby("length")["method"].nunique()
    )
    length = counts[counts == counts.max()].index.max()
    at = frame[frame["length"] == length]
    bars = bars_of(at[at["method"] != "full"], at[at["method"] == "full"])
    ends = [bar.end for bar in bars if bar.end > 0]
    draw(axis, bars, max((end for end in ends if end <= max(ends) / ZOOM), default=max(ends)), heading=True)
    return bars


def decoding(axis: Axes, frame: pd.DataFrame) -> None:
    """Tokens a second from the kept cache: of one sequence, and of as many as were decoded at once."""
    batched = frame[(frame["phase"] == "decode_batch") & (frame["status"] == "ok")]
    for method in dict.fromkeys(["full", *batched["method"]]):
        colour, kept = style(method).colour, "full cache" if method == "full" else "evicted"
        one, many = totals(frame, method), batched[batched["method"] == method]
        capped = (2 * many["batch"] <= many["max_batch"]).any()
        most = f" ({many['batch'].max():,.0f} at most)" if capped else ""
        axis.plot(
            many["length"], many["tokens_per_s"], "o-", color=colour, label=f"{kept}, as many as fit{most}"
        )
        axis.plot(one["length"], one["tokens_per_s"], "--", color=colour, label=f"{kept}, one sequence")
        for row in many.to_dict("records"):
            place, text = (row["length"], row["tokens_per_s"]), f"{row['batch']:,.0f}"
            axis.annotate(text, place, (0, 4), textcoords="offset points", ha="center", fontsize=7)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:,.0f}")
    low, high = axis.get_ylim()
    axis.set_ylim(top=high * (high / low) ** 0.75)  # the upper two fifths are the legend's
    axis.set_ylabel("tokens/s (numbers: sequences)")
    axis.legend(fontsize=7, loc="upper right")
    along(axis, frame)


def memory(axis: Axes, frame: pd.DataFrame) -> None:
    """Peak device memory of the prefill: plain, evicted after the pass, and layer by layer."""
    ways = [("full", False, "plain"), ("lookaheadkv", False, "evict after"), ("lookaheadkv", True, LAYERWISE)]
    for method, layerwise, label in ways:
        rows = totals(frame, method, layerwise)
        if rows.empty:
            continue
        line: dict[str, Any] = {"linestyle": (0, (4, 2)), "marker": "D"} if layerwise else {}
        line |= {"zorder": 5} if method == "full" else {}
        axis.plot(rows["length"], rows["peak_prefill_bytes"] / 2**30, **line_look(method) | line, label=label)
    axis.set_ylabel("GiB")
    axis.set_ylim(bottom=0)
    axis.legend(loc="lower right", fontsize=7.5)
    along(axis, frame)


def totals(frame: pd.DataFrame, method: str, layerwise: bool = False) -> pd.DataFrame:
    """A method's usable `total` rows, shortest first."""
    way = frame["implementation"].str.contains(LAYERWISE, regex=False) == layerwise
    rows = frame[(frame["phase"] == "total") & (frame["status"] == "ok") & (frame["method"] == method) & way]
    return rows.sort_values("length")


def along(axis: Axes, frame: pd.DataFrame) -> None:
    """Lengths as the x axis, each a tick."""
    lengths = sorted(set(frame["length"]))
    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths, [thousands(length) for length in lengths])
    axis.minorticks_off()
    axis.set_xlabel("prompt tokens")
    axis.grid()
