"""What a claim is judged by: a study's result files, in cells of one difference or one overhead."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lkv.errors import UserError
from lkv.files.markup import inert
from lkv.results.columns import (
    ABLATION_COLUMNS,
    ACCURACY_COLUMNS,
    LATENCY_COLUMNS,
    PAIRED_COLUMNS,
    read_provenance,
)
from lkv.results.csv_files import read_csv
from lkv.results.summarise import AVERAGE, BUILT_IN, REFERENCE

if TYPE_CHECKING:
    import pandas as pd


HOLDS, PART, FAILS = "holds", "holds in part", "does not hold"
UNTESTABLE, UNMEASURED = "cannot be tested here", "not measured yet"
VERDICTS = (HOLDS, PART, FAILS, UNTESTABLE, UNMEASURED)

TABLES = {
    "accuracy": ACCURACY_COLUMNS,
    "paired": PAIRED_COLUMNS,
    "ablation": ABLATION_COLUMNS,
    "latency": LATENCY_COLUMNS,
}
BESIDE = ("accuracy", "paired")  # read from the studies beside the main one as well
SAME = ("model", "benchmark", "task", "length", "protocol", "haystack", "method", "budget")
NOT_ADDED = ("prefill", "first_token", "decode_token", "decode_batch", "total")
SHAPE, DEVICE = "llama-3.1-8b-instruct", "H100"

Place = tuple[int, int]  # length (0 where a benchmark has its own), budget
Rows = Mapping[str, object]  # column: value


class Unsettled(Exception):
    """No verdict can be given: `verdict` is UNMEASURED or UNTESTABLE, the message says why."""

    def __init__(self, reason: str, verdict: str = UNMEASURED) -> None:
        super().__init__(reason)
        self.verdict = verdict


@dataclass(frozen=True)
class Cell:
    """One difference in points of score with its 95 % interval; above 0 LookaheadKV is better."""

    where: str
    diff: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Overhead:
    """What is added to a plain prefill, ms: its median; its phases' 10th and 90th percentiles, summed."""

    median: float
    low: float
    high: float
    prefill: float


@dataclass(frozen=True, eq=False)
class Evidence:
    """A study's files, with the scores of those beside; what it does not have is missing from `tables`."""

    study: str
    tables: Mapping[str, pd.DataFrame]
    provenance: Mapping[str, Any]
    latency_study: str
    beside: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # study: its provenance

    def table(self, name: str) -> pd.DataFrame:
        if name not in self.tables:
            raise Unsettled(f"no {name}.csv")
        return self.tables[name]


def read_evidence(results: Path, latency: Path | None = None, also: Sequence[Path] = ()) -> Evidence:
    """The files of `results`; latency.csv from `latency` where that is given. Missing files are no error.

    Scores of the studies `also` are read beside: their files must be there, and no cell in two of them.
    """
    for folder in (results, latency or results, *also):
        if not folder.is_dir():
            raise UserError(f"no such results folder: {folder}; give the folder of a study, results/NAME")
    tables = {}
    for name in TABLES:
        own = (latency or results if name == "latency" else results) / f"{name}.csv"
        files = [own] if own.is_file() else []
        files += [folder / f"{name}.csv" for folder in also if name in BESIDE]
        if files:
            tables[name] = _joined(name, files)
    card = results / "provenance.json"
    return Evidence(
        inert(results.name),
        tables,
        inert(read_provenance(card)) if os.path.lexists(card) else {},
        inert((latency or results).name),
        inert({folder.name: read_provenance(folder / "provenance.json") for folder in also}),
    )


def _joined(name: str, files: Sequence[Path]) -> pd.DataFrame:
    """The rows of several studies' files as one table."""
    import pandas as pd

    frames = {path: _inert(read_csv(path, TABLES[name])) for path in files}
    for frame in frames.values():
        for column in {"protocol", "haystack", "arm", "implementation", "device"} & set(frame.columns):
            frame[column] = frame[column].fillna("").astype(str)
    if len(files) == 1:
        return frames[files[0]]
    _once(frames)
    return pd.concat([frame for frame in frames.values() if len(frame)] or [frames[files[0]]])


def _inert(frame: pd.DataFrame) -> pd.DataFrame:
    texts = [name for name in frame.columns if frame[name].dtype.kind not in "ifb"]
    return frame.assign(**{name: frame[name].map(inert) for name in texts})


def _once(frames: Mapping[Path, pd.DataFrame]) -> None:
    """Raises UserError where a cell is there twice: no study's figure goes before another's."""
    seen: dict[tuple[object, ...], Path] = {}
    for path, frame in frames.items():
        columns = [*SAME, *({"metric"} & set(frame.columns))]
        for cell in frame[columns].itertuples(index=False, name=None):
            if cell in seen:
                words = ", ".join(f"{key} {value}" for key, value in zip(columns, cell, strict=True))
                raise UserError(
                    f"{path}: a cell that {seen[cell]} has as well ({words}); each may come from "
                    "one study, so leave one of the two out"
                )
            seen[cell] = path


def averages(frame: pd.DataFrame, benchmark: str, temperature: float | None = None) -> pd.DataFrame:
    """The headline rows: averages under the official protocol; RULER's with the essays as haystack."""
    words = [] if temperature is None else [f"temperature={temperature:g}"]
    if benchmark == "ruler":
        official = frame["protocol"] == " ".join(["official", *words])
        text = ~frame["haystack"].isin(["pydoc", BUILT_IN, ""])
    else:  # LongBench's label names where prompts are cut
        labels = frame["protocol"].str.split()
        official = labels.map(
            lambda label: (
                label[:1] == ["official"]
                and [word for word in label if word.startswith("temperature=")] == words
            )
        ).astype(bool)
        text = frame["haystack"] == ""
    rows = frame[(frame["benchmark"] == benchmark) & (frame["task"] == AVERAGE) & official & text]
    if rows.empty:
        at = "" if temperature is None else f" at temperature {temperature:g}"
        raise Unsettled(f"no {benchmark} average under the official protocol{at}")
    if rows["haystack"].nunique() > 1 or rows["protocol"].nunique() > 1:
        raise Unsettled(f"several haystacks or protocols among the {benchmark} averages")
    return rows


def pick(frame: pd.DataFrame, **equal: object) -> pd.Series:
    """The one row with these values; Unsettled where there is none or more than one."""
    rows = frame
    for column, value in equal.items():
        rows = rows[rows[column] == value]
    if len(rows) != 1:
        what = ", ".join(f"{column} {value}" for column, value in equal.items())
        raise Unsettled(f"{'no row' if rows.empty else 'several rows'} for {what}")
    return rows.iloc[0]


def against(
    evidence: Evidence,
    methods: Iterable[str],
    places: Sequence[Place],
    benchmark: str = "ruler",
    temperatures: Sequence[float | None] = (None,),
) -> list[Cell]:
    """LookaheadKV minus each method at each place, for every model of the study, from paired.csv."""
    frame = evidence.table("paired")
    frame = frame[frame["metric"] == "score"]
    methods, cells = list(methods), []
    for temperature in temperatures:
        rows = averages(frame, benchmark, temperature)
        for model in dict.fromkeys(rows["model"]):
            for method in methods:
                for length, budget in places:
                    row = pick(rows, model=model, method=method, length=length, budget=budget)
                    where = place(length, budget, method, model if rows["model"].nunique() > 1 else "")
                    where += "" if temperature is None else f", T = {temperature:g}"
                    cells.append(_cell(where, row["diff"], row["ci_low"], row["ci_high"], row["p"]))
    return cells


def over_arms(evidence: Evidence, arms: Iterable[str], places: Sequence[Place]) -> list[Cell]:
    """The main arm minus each other arm at each place, for every model, from ablation.csv."""
    rows = averages(evidence.table("ablation"), "ruler")
    cells = []
    for model in dict.fromkeys(rows["model"]):
        for arm in arms:
            for length, budget in places:
                row = pick(rows, model=model, method=REFERENCE, arm=arm, length=length, budget=budget)
                where = place(length, budget, f"arm {arm}", model if rows["model"].nunique() > 1 else "")
                # Subtracted, not negated: the file has arm minus main.
                low, high = 0 - row["diff_ci_high"], 0 - row["diff_ci_low"]
                cells.append(_cell(where, 0 - row["diff_vs_lookaheadkv"], low, high, row["p_vs_lookaheadkv"]))
    return cells


def arm_against(evidence: Evidence, arm: str, method: str, places: Sequence[Place]) -> list[Cell]:
    """An arm of ablation.csv minus a method of accuracy.csv, unpaired.

    From one's lower end minus the other's upper end to the reverse: wider than the difference's interval.
    """
    ablation, accuracy = evidence.table("ablation"), evidence.table("accuracy")
    arms, methods = averages(ablation, "ruler"), averages(accuracy, "ruler")
    cells = []
    for model in dict.fromkeys(arms["model"]):
        for length, budget in places:
            ours = pick(arms, model=model, method=REFERENCE, arm=arm, length=length, budget=budget)
            theirs = pick(methods, model=model, method=method, length=length, budget=budget)
            if _tasks(ablation, ours) != _tasks(accuracy, theirs):
                raise Unsettled("the arms were evaluated on other tasks than the methods")
            low, high = ours["ci_low"] - theirs["ci_high"], ours["ci_high"] - theirs["ci_low"]
            p = 0.0 if low > 0 or high < 0 else 1.0
            where = place(length, budget, method, model if arms["model"].nunique() > 1 else "")
            cells.append(_cell(where, ours["mean"] - theirs["mean"], low, high, p))
    return cells


def overhead(evidence: Evidence, method: str, length: int, budget: int = 128) -> Overhead:
    """What a method adds to one prompt on the paper's model and machine, eviction after the pass."""
    frame = evidence.table("latency")
    frame = frame[(frame["model"] == SHAPE) & frame["device"].str.contains(DEVICE)]
    frame = frame[~frame["implementation"].str.contains("layer by layer") & (frame["status"] == "ok")]
    if frame.empty:
        raise Unsettled(f"no rows of {SHAPE} on an {DEVICE}")
    own = frame[(frame["length"] == length) & (frame["budget"] == budget) & (frame["method"] == method)]
    total, prefill = pick(own, phase="total", length=length, method=method), pick(own, phase="prefill")
    added = own[~own["phase"].isin(NOT_ADDED)]
    return Overhead(
        float(total["overhead_ms"]),
        float(added["p10_ms"].sum()),
        float(added["p90_ms"].sum()),
        float(prefill["median_ms"]),
    )


def thousands(length: int) -> str:
    """8K for 8,192 tokens, and for 8,064; 0.5K for 512."""
    return f"{length / 1024:{'.3g' if length < 4096 else '.0f'}}K"


def place(length: int, budget: int, *what: str) -> str:
    at = f"{thousands(length)}, C = {budget}" if length else f"C = {budget}"
    return ", ".join([*(word for word in what if word), at])


def _tasks(frame: pd.DataFrame, of: pd.Series) -> set[tuple[str, str]]:
    """The tasks (and built-in ones) with figures beside an average row."""
    same = frame
    for column in ("model", "benchmark", "length", "protocol", "method", "budget"):
        same = same[same[column] == of[column]]
    same = same[(same["task"] != AVERAGE) & (same["haystack"] != "pydoc")]
    return set(zip(same["task"], same["haystack"], strict=True))


def _cell(where: str, *figures: float) -> Cell:
    if any(figure != figure for figure in figures):
        raise Unsettled(f"no interval for {where}")
    return Cell(where, *map(float, figures))
