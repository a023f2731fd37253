"""What the plots share: the look, reading a result CSV, legend and caption outside the data, fixed bytes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lkv.errors import UserError
from lkv.report.style import style
from lkv.results.csv_files import read_csv

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FORMATS = ("pdf", "svg", "png")
WIDTH = 7.2  # inches: the text width of a two-column page
QUIET = "#555555"
BUDGET = "C: entries kept per layer and KV head"
RC: Any = {  # Any: matplotlib's stubs want the keys as literals
    "font.family": ["STIXGeneral", "DejaVu Sans"],  # both come with matplotlib
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "hatch.linewidth": 0.6,
    "pdf.fonttype": 42,
    "text.parse_math": False,  # names may hold a $
    "svg.hashsalt": "lkv",
}


def read_figures(path: Path, columns: Iterable[str], text: Iterable[str]) -> pd.DataFrame:
    """A result CSV with rows, whose `text` columns are text also where they are empty."""
    frame = read_csv(path, columns)
    if frame.empty:
        raise UserError(f"{path} has no rows to plot; run the step that writes it")
    for column in text:
        frame[column] = frame[column].fillna("").astype(str)
    return frame


def finish(figure: Figure, handles: Sequence[Any], caption: str) -> Figure:
    """Legend above the panels, caption below them; both outside the data."""
    if handles:
        longest = max(len(str(handle.get_label())) for handle in handles)
        columns = max(1, min(len(handles), int(figure.get_figwidth() / (0.55 + 0.065 * longest))))
        figure.legend(handles=handles, loc="outside upper center", ncols=columns, handlelength=2.8)
    lines = textwrap.fill(caption, int(figure.get_figwidth() * 18.5), break_on_hyphens=False)
    figure.supxlabel(lines, fontsize=7.5, color=QUIET)
    return figure


def panels(parent: Any, count: int, columns: int, **sharing: Any) -> list[Any]:
    """`count` axes of a figure, or of a part of one, in lines of `columns`; what is left over stays empty."""
    axes = list(parent.subplots(math.ceil(count / columns), columns, squeeze=False, **sharing).flat)
    for axis in axes[count:]:
        axis.remove()
    return axes[:count]


def method_handle(method: str) -> Any:
    """A legend entry that looks as the method does in the plot."""
    from matplotlib.lines import Line2D

    return Line2D([], [], **line_look(method), label=style(method).label)


def line_look(method: str) -> dict[str, Any]:
    """matplotlib's settings for a method's line."""
    look = style(method)
    heavy = {"linewidth": 2.0, "zorder": 4} if method == "lookaheadkv" else {}
    return {"color": look.colour, "marker": look.marker, "linestyle": look.line, **heavy}


def listing(values: Iterable[Any]) -> str:
    """Distinct values in order, as text."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value))


def to_bytes(figure: Figure, suffix: str) -> bytes:
    """The rendered figure, without dates."""
    metadata: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    stream = BytesIO()
    figure.savefig(stream, format=suffix, dpi=200, metadata=metadata.get(suffix))
    return stream.getvalue()
