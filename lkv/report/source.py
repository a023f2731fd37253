"""What the reports read: accuracy.csv in blocks (one table, one row of plots each) and provenance.json."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lkv.errors import UserError
from lkv.report.style import benchmark_label, length_label, span
from lkv.results.columns import ABLATION_COLUMNS, ACCURACY_COLUMNS
from lkv.results.columns import read_provenance as provenance_of
from lkv.results.csv_files import read_csv
from lkv.results.summarise import AVERAGE, BUILT_IN, belongs_to_its_task

if TYPE_CHECKING:
    import jinja2
    import pandas as pd

TEXT_COLUMNS = ("study", "model", "benchmark", "task", "protocol", "haystack", "method")


@dataclass(frozen=True, eq=False)
class Block:
    """The figures that may stand side by side: one model, benchmark, length, protocol and text source."""

    model: str
    benchmark: str
    length: int
    protocol: str
    haystack: str
    rows: pd.DataFrame  # accuracy rows: the average and the tasks that it covers

    @property
    def average(self) -> pd.DataFrame:
        return self.rows[self.rows["task"] == AVERAGE]

    @property
    def tasks(self) -> list[tuple[str, str]]:
        """(task, haystack) pairs, by name."""
        rows = self.rows[self.rows["task"] != AVERAGE]
        return sorted(set(zip(rows["task"], rows["haystack"], strict=True)))

    @property
    def samples(self) -> str:
        """How many a cell of the average has, and of how many planned where that is more."""
        counts, planned = self.average["n"], int(self.average["n_planned"].max())
        return f"{span(counts)} of {planned:,}" if counts.min() < planned else span(counts)

    @property
    def title(self) -> str:
        return f"{self.model}: {self.setting}"

    @property
    def setting(self) -> str:
        """The title without its model."""
        source = "" if self.haystack in ("", BUILT_IN) else f", haystack {self.haystack}"
        where = f"{benchmark_label(self.benchmark)}, {length_label(self.length)}{source}"
        return f"{where}; {self.protocol or 'unnamed protocol'}"

    @property
    def heading(self) -> str:
        """The title in lines that fit above a panel of a third of the page."""
        return "\n".join([self.model, *textwrap.wrap(self.setting, 37)])


def read_accuracy(results_dir: str | Path) -> pd.DataFrame:
    """accuracy.csv, whose text columns are text also where they are empty."""
    return _texts(read_csv(Path(results_dir) / "accuracy.csv", ACCURACY_COLUMNS))


def _texts(frame: pd.DataFrame) -> pd.DataFrame:
    texts = {column: frame[column].fillna("").astype(str) for column in TEXT_COLUMNS}
    return frame.assign(**texts)


def read_scores(results_dir: str | Path) -> pd.DataFrame:
    """accuracy.csv and, of ablation.csv, the arms that the study's config wants beside the methods, each as a
    method of its own, `lookaheadkv/ARM`. Their differences, which are from another arm, are left out."""
    import pandas as pd

    frame = read_accuracy(results_dir)
    path = Path(results_dir) / "ablation.csv"
    own = (read_provenance(results_dir).get("config") or {}).get("ablation") or {}
    wanted = own.get("beside")
    if not wanted or not path.is_file():
        return frame
    rows = read_csv(path, ABLATION_COLUMNS)
    rows = rows[rows["arm"].isin(wanted)]
    rows = rows.assign(method=rows["method"] + "/" + rows["arm"])
    compared = [name for name in ACCURACY_COLUMNS if name.startswith(("diff_", "p_vs"))]
    rows = rows.assign(**dict.fromkeys(compared, math.nan))[list(ACCURACY_COLUMNS)]
    return pd.concat([frame, _texts(rows)], ignore_index=True)


def read_blocks(results_dir: str | Path, arms: bool = True) -> list[Block]:
    """accuracy.csv's blocks, in the order of the file; with `arms` those beside the methods as well."""
    frame = read_scores(results_dir) if arms else read_accuracy(results_dir)
    key = ["study", "model", "benchmark", "length", "protocol"]
    found = []
    for _, group in frame.groupby(key, sort=False):
        model, benchmark, length, protocol = group[key[1:]].iloc[0]
        for source in dict.fromkeys(group.loc[group["task"] == AVERAGE, "haystack"]):
            own = (group["haystack"] == source) | (
                (group["task"] != AVERAGE) & group["haystack"].map(belongs_to_its_task)
            )
            found.append(Block(model, benchmark, int(length), protocol, source, group[own]))
    if not found:
        raise UserError(
            f"{Path(results_dir) / 'accuracy.csv'} has no rows with task {AVERAGE!r}; "
            "write it with: lkv summarise --samples FILE... --out accuracy.csv --paired paired.csv"
        )
    return found


def template(name: str, autoescape: bool = False, **filters: Callable[..., Any]) -> jinja2.Template:
    """A template that lies beside this file; what it is not given is an error."""
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, autoescape=autoescape, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= filters
    return environment.from_string(Path(__file__).with_name(name).read_text("utf-8"))


def read_provenance(results_dir: str | Path) -> dict[str, Any]:
    """provenance.json, or nothing where the study has none (notes then say what is unknown)."""
    path = Path(results_dir) / "provenance.json"
    return provenance_of(path) if os.path.lexists(path) else {}
