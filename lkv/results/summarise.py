"""From per-sample scores to accuracy.csv and paired.csv: the one place where figures are aggregated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from lkv.errors import UserError
from lkv.results.columns import ABLATION_COLUMNS, ACCURACY_COLUMNS, PAIRED_COLUMNS, SAMPLE_COLUMNS
from lkv.results.csv_files import read_csv, write_csv
from lkv.results.statistics import Floats, bootstrap_mean, paired_difference

if TYPE_CHECKING:
    import pandas as pd


AVERAGE = "average"
STATUSES = ("ok", "out of memory", "unparsed", "failed")  # the last two of a judge's ratings
REFERENCE = "lookaheadkv"
BUILT_IN = "built-in"
BUILT_IN_HAYSTACKS = ("noise", "needles", "words", "coded")
BUILT_IN_PREFIXES = ("squad:", "hotpotqa:")
PAIRED_METRICS = ("score", "recall", "recall_raw")

GROUP = ("study", "model", "benchmark", "length", "protocol")
CELL = ("task", "haystack", "method", "budget")
MEANS = ("recall", "recall_raw", "kept_mean", "kept_bytes")

Part: TypeAlias = tuple[str, str]  # task, haystack
# (column, *CELL) -> one value a sample, nan where it is not ok
Values: TypeAlias = Mapping[tuple[Any, ...], Floats]


def write_summary(
    sample_paths: Sequence[str | Path], accuracy_path: str | Path, paired_path: str | Path, seed: int
) -> None:
    """Reads samples/*.csv (also .csv.gz) and writes accuracy.csv and paired.csv."""
    accuracy, paired = summarise(_read_samples(sample_paths), seed)
    write_csv(accuracy_path, accuracy, ACCURACY_COLUMNS)
    write_csv(paired_path, paired, PAIRED_COLUMNS)


def write_ablation(sample_paths: Sequence[str | Path], path: str | Path, arm: str, seed: int) -> None:
    """Writes ablation.csv from the samples of `lkv evaluate --arms`: accuracy.csv's columns, `arm` in front.

    `arm` is the one that the others are compared with (diff_vs_lookaheadkv); the full cache has none.
    """
    accuracy, _ = summarise(_read_samples(sample_paths), seed)
    others = accuracy["method"].str.removeprefix(f"{REFERENCE}/")
    accuracy["arm"] = others.replace({REFERENCE: arm, "full": ""})
    accuracy["method"] = accuracy["method"].str.partition("/")[0]
    write_csv(path, accuracy, ABLATION_COLUMNS)


def _read_samples(paths: Sequence[str | Path]) -> pd.DataFrame:
    import pandas as pd

    if not paths:
        raise UserError("no sample files to summarise; run the evaluation first: lkv evaluate --help")
    return pd.concat([_whole(read_csv(path, SAMPLE_COLUMNS), path) for path in paths], ignore_index=True)


def _whole(samples: pd.DataFrame, path: str | Path) -> pd.DataFrame:
    """The samples of a file, each of which must have a row of every method and budget: else it is torn."""
    known = samples["status"].isin(STATUSES)
    if not known.all():
        found = samples["status"][~known].iloc[0]
        raise UserError(f"{path}: status is {found!r}; known: {', '.join(STATUSES)}: make the file again")
    key = ["study", "model", "benchmark", "task", "length", "protocol", "haystack"]
    for _, group in samples.groupby(key, dropna=False):
        cells = group.groupby("sample").size()
        most = len(group[["method", "budget"]].drop_duplicates())
        if len(short := cells[cells < most]):
            raise UserError(
                f"{path}: sample {short.index[0]} of {group['task'].iloc[0]} has {short.iloc[0]} of {most} "
                "rows; the file is not whole: run lkv evaluate again"
            )
    return samples


def summarise(samples: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(ACCURACY_COLUMNS, PAIRED_COLUMNS) frames of a SAMPLE_COLUMNS frame.

    One accuracy row a cell (study, model, benchmark, task, length, protocol, haystack, method, budget), and
    rows `task=average`: the mean of the task means. Texts never mix in an average. A benchmark's tasks have
    haystacks that belong to the task (noise, needles, words, coded, squad:*, hotpotqa:*) or the one text
    source that the config names (pydoc, an essays file). The average row carries the text source as its
    `haystack` and covers that source's tasks and all built-in ones; two sources give two average rows; with
    no source the value is "built-in", and empty where the benchmark has texts of its own.

    n counts the rows with status ok, n_planned what the study planned (column `planned`). A method that lacks
    a task (or has no ok row in it) gets an average row without a mean, because the mean of the other tasks is
    another quantity.

    Paired differences take the samples that both sides have. accuracy's `diff_vs_lookaheadkv` is method minus
    LookaheadKV at the same budget; paired's `diff` is reference (LookaheadKV) minus method, and there `full`
    is compared at each of LookaheadKV's budgets.
    """
    import pandas as pd

    samples = samples.copy()
    for column in ("study", "model", "benchmark", "task", "protocol", "haystack", "method"):
        samples[column] = samples[column].fillna("").astype(str)
    key = [*GROUP, *CELL, "sample"]
    if (twice := samples.duplicated(key)).any():
        first = ", ".join(f"{name} {value}" for name, value in samples.loc[twice, key].iloc[0].items())
        raise UserError(
            f"the row of {first} occurs more than once; give each sample file once, "
            "and keep different runs in different studies"
        )
    methods = sorted(dict.fromkeys(samples["method"]), key=lambda method: method != "full")
    accuracy: list[dict[str, Any]] = []
    paired: list[dict[str, Any]] = []
    for names, group in samples.groupby(list(GROUP), sort=True):
        head = dict(zip(GROUP, names, strict=True))
        values = _values(group)
        cells = group.assign(ok=group["status"] == "ok").groupby(list(CELL))
        counts = cells.agg(ok=("ok", "sum"), rows=("ok", "size"), planned=("planned", "max"))
        planned = {cell: (int(ok), int(max(rows, plan))) for cell, ok, rows, plan in counts.itertuples()}
        budgets = {m: sorted(group.loc[group["method"] == m, "budget"].unique()) for m in methods}
        for (task, haystack), parts in _rows(group):
            row = head | {"task": task, "haystack": haystack}
            differences = list(_differences(values, parts, methods, budgets, seed))
            paired += [row | difference for difference in differences]
            accuracy += [
                row | cell for cell in _means(values, planned, parts, methods, budgets, differences, seed)
            ]
    return (
        pd.DataFrame(accuracy, columns=list(ACCURACY_COLUMNS)),
        pd.DataFrame(paired, columns=list(PAIRED_COLUMNS)),
    )


def _values(group: pd.DataFrame) -> Values:
    """All figures of a group as arrays; the arrays of one task are aligned by sample, so pairs line up."""
    columns = ["score", *MEANS]
    figures = group[columns].astype(float).where(group["status"] == "ok", axis=0)
    values: dict[tuple[Any, ...], Floats] = {}
    wide = group.drop(columns=columns).join(figures)
    for part, rows in wide.groupby(["task", "haystack"]):
        table = rows.pivot(index="sample", columns=["method", "budget"], values=columns)
        for key, figure in table.items():
            column, method, budget = cast("tuple[str, str, int]", key)
            values[column, *part, method, budget] = figure.to_numpy(float)
    return values


def _rows(group: pd.DataFrame) -> list[tuple[Part, list[Part]]]:
    """((task, haystack), the tasks it covers) in the order of the file: by haystack, averages last."""
    parts = sorted(set(zip(group["task"], group["haystack"], strict=True)))
    fixed = [part for part in parts if belongs_to_its_task(part[1])]
    sources = {haystack for _, haystack in parts if not belongs_to_its_task(haystack)}
    if not sources:
        sources = {BUILT_IN if any(haystack for _, haystack in fixed) else ""}
    rows = [(part, [part]) for part in parts]
    rows += [((AVERAGE, s), [part for part in parts if part in fixed or part[1] == s]) for s in sources]
    return sorted(rows, key=lambda row: (row[0][1], row[0][0] == AVERAGE, row[0][0]))


def belongs_to_its_task(haystack: str) -> bool:
    """Whether a haystack is part of the task's definition, not the text source that a config names."""
    return not haystack or haystack in BUILT_IN_HAYSTACKS or haystack.startswith(BUILT_IN_PREFIXES)


def _means(
    values: Values,
    planned: Mapping[tuple[Any, ...], tuple[int, int]],
    parts: Sequence[Part],
    methods: Sequence[str],
    budgets: Mapping[str, Sequence[int]],
    differences: Sequence[Mapping[str, Any]],
    seed: int,
) -> Iterator[dict[str, Any]]:
    """The accuracy cells of one task or average."""
    tests = {(d["method"], d["budget"]): d for d in differences if d["metric"] == "score"}
    full = bootstrap_mean(_of(values, "score", parts, "full", 0), seed)[0]
    for method in methods:
        for budget in budgets[method]:
            counts = [planned[*part, method, budget] for part in parts if (*part, method, budget) in planned]
            if not counts:
                continue
            mean, low, high = bootstrap_mean(_of(values, "score", parts, method, budget), seed)
            cell = {
                "method": method,
                "budget": budget,
                "n": sum(ok for ok, _ in counts),
                "n_planned": sum(size for _, size in counts),
                "mean": mean,
                "ci_low": low,
                "ci_high": high,
                "retained": 100 * mean / full if full else np.nan,
            }
            for column in MEANS:
                tasks = _of(values, column, parts, method, budget)
                cell[column] = np.mean([task.mean() for task in tasks]) if all(map(len, tasks)) else np.nan
            if test := tests.get((method, budget)):
                # Subtracted, not negated: a negated zero would be written as -0.
                cell["diff_vs_lookaheadkv"] = 0 - test["diff"]
                cell["diff_ci_low"], cell["diff_ci_high"] = 0 - test["ci_high"], 0 - test["ci_low"]
                cell["p_vs_lookaheadkv"] = test["p"]
            yield cell


def _differences(
    values: Values,
    parts: Sequence[Part],
    methods: Sequence[str],
    budgets: Mapping[str, Sequence[int]],
    seed: int,
) -> Iterator[dict[str, Any]]:
    """The paired cells of one task or average: LookaheadKV minus each other method, where pairs exist."""
    others = [method for method in methods if method != REFERENCE]
    for metric, method, budget in product(PAIRED_METRICS, others, budgets.get(REFERENCE, ())):
        own = 0 if method == "full" else budget
        pairs = [_pairs(values, (metric, *part), (REFERENCE, budget), (method, own)) for part in parts]
        ours, theirs = zip(*pairs, strict=True)
        if n := sum(map(len, ours)):
            diff, low, high, p = paired_difference(ours, theirs, seed)
            cell = {"budget": budget, "metric": metric, "method": method, "reference": REFERENCE}
            yield cell | {"n": n, "diff": diff, "ci_low": low, "ci_high": high, "p": p}


def _pairs(
    values: Values, figure: tuple[str, ...], ours: tuple[str, int], theirs: tuple[str, int]
) -> tuple[Floats, Floats]:
    """One figure of one task for the samples that both cells have."""
    a, b = values.get((*figure, *ours)), values.get((*figure, *theirs))
    if a is None or b is None:
        return np.empty(0), np.empty(0)
    both = ~np.isnan(a) & ~np.isnan(b)
    return a[both], b[both]


def _of(values: Values, column: str, parts: Sequence[Part], method: str, budget: int) -> list[Floats]:
    """The ok figures of one cell, one array a task; empty where the method lacks the task."""
    found = [values.get((column, *part, method, budget), np.empty(0)) for part in parts]
    return [array[~np.isnan(array)] for array in found]
