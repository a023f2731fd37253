"""`lkv plot KIND`: one figure from a study's files, as .pdf, .svg and .png."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copy
from typing import TYPE_CHECKING

from lkv.errors import one_of
from lkv.files.atomic import atomic_write, temporary_folder
from lkv.report.ablation import ablation
from lkv.report.accuracy import accuracy, averages
from lkv.report.figure import FORMATS, RC, to_bytes
from lkv.report.kept import kept
from lkv.report.kinds import PLOTS
from lkv.report.latency import latency
from lkv.report.pareto import pareto
from lkv.report.recall import recall
from lkv.report.training import training
from lkv.results.csv_files import read_csv
from lkv.results.paths import PATHS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS: dict[str, Callable[[Path], Figure]] = {
    "latency": latency,
    "pareto": pareto,
    "training": training,
    "averages": averages,
    "accuracy": accuracy,
    "ablation": ablation,
    "recall": recall,
    "kept": kept,
}


def plot(kind: str, results_dir: str | Path, out_stem: str | Path, model: str | None = None) -> None:
    """Writes out_stem.pdf, .svg and .png of one kind; the same bytes for the same files. With `model`, of
    that one alone."""
    if kind not in KINDS:
        raise one_of("plot", kind, KINDS)
    from matplotlib import rc_context

    with rc_context(RC), of_model(Path(results_dir), kind, model) as folder:
        figure = KINDS[kind](folder)
        rendered = {suffix: to_bytes(figure, suffix) for suffix in FORMATS}
    for suffix, content in rendered.items():
        with atomic_write(f"{out_stem}.{suffix}", "wb") as stream:
            stream.write(content)


@contextmanager
def of_model(results_dir: Path, kind: str, model: str | None) -> Iterator[Path]:
    """The study's folder, or one with what a plot reads of a single model."""
    if model is None:
        yield results_dir
        return
    import pandas as pd

    with temporary_folder() as folder:
        for name in (Path(PATHS[key]).name for key in PLOTS[kind]):
            path = results_dir / name
            if path.suffix == ".csv":
                models = read_csv(path, ["model"])["model"]
                if model not in set(models):
                    raise one_of(f"model in {path}:", model, models.unique())
                frame = pd.read_csv(path, dtype=str, keep_default_na=False)  # as it is written
                frame[models == model].to_csv(Path(folder, name), index=False)
            elif path.is_file():
                copy(path, folder)
        yield Path(folder)
