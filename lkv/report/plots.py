"""`lkv plot KIND`: one figure from a study's files, as .pdf, .svg and .png."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lkv.errors import one_of
from lkv.records import atomic_write
from lkv.report.ablation import ablation
from lkv.report.accuracy import accuracy
from lkv.report.figure import FORMATS, RC, to_bytes
from lkv.report.kept import kept
from lkv.report.latency import latency
from lkv.report.pareto import pareto
from lkv.report.recall import recall
from lkv.report.training import training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS: dict[str, Callable[[Path], Figure]] = {
    "latency": latency,
    "pareto": pareto,
    "training": training,
    "accuracy": accuracy,
    "ablation": ablation,
    "recall": recall,
    "kept": kept,
}


def plot(kind: str, results_dir: str | Path, out_stem: str | Path) -> None:
    """Writes out_stem.pdf, .svg and .png of one kind; the same bytes for the same files."""
    if kind not in KINDS:
        raise one_of("plot", kind, KINDS)
    from matplotlib import rc_context

    with rc_context(RC):
        figure = KINDS[kind](Path(results_dir))
        rendered = {suffix: to_bytes(figure, suffix) for suffix in FORMATS}
    for suffix, content in rendered.items():
        with atomic_write(f"{out_stem}.{suffix}", "wb") as stream:
            stream.write(content)
