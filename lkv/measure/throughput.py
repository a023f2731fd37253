"""How fast a grid is evaluated: samples × cells a second, for this harness and, beside it, for kvpress.

lkv.integrations.kvpress measures kvpress, which needs an older transformers, in an environment of its own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lkv.errors import UserError
from lkv.files.atomic import temporary_folder
from lkv.interface import Method
from lkv.measure.accuracy import evaluate
from lkv.model.load import Loaded
from lkv.results.columns import THROUGHPUT_COLUMNS
from lkv.results.csv_files import read_csv, write_csv


def throughput(
    loaded: Loaded,
    tasks: Sequence[Sequence[dict[str, Any]]],
    methods: Sequence[Method],
    budgets: Sequence[int],
    out: Path,
    runs: int = 2,
) -> list[dict[str, Any]]:
    """Evaluates the tasks' records `runs` times from nothing, a row each. The first compiles and captures."""
    rows, cuda = [], loaded.model.device.type == "cuda"
    samples = sum(map(len, tasks))
    cells = samples * (1 + len(methods) * len(budgets))
    for run in range(1, runs + 1):
        with temporary_folder() as folder:
            start = time.perf_counter()
            for number, records in enumerate(tasks):
                paths = folder / f"{number}.jsonl", folder / f"{number}.csv"
                evaluate(loaded, records, methods, budgets, "throughput", 0, *paths)
            if cuda:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
            new_tokens = sum(_new_tokens(folder / f"{number}.csv") for number in range(len(tasks)))
        rows.append(
            {
                "engine": "lkv",
                "model": loaded.name,
                "run": run,
                "samples": samples,
                "cells": cells,
                "new_tokens": new_tokens,
                "seconds": seconds,
                "cells_per_s": cells / seconds,
                "methods": " ".join(["full", *(method.name for method in methods)]),
                "budgets": " ".join(map(str, budgets)),
                "device": torch.cuda.get_device_name() if cuda else "CPU",
                "dtype": loaded.dtype,
            }
        )
    write_csv(out, rows, THROUGHPUT_COLUMNS)
    return rows


def _new_tokens(path: Path) -> int:
    return int(read_csv(path, ["new_tokens"])["new_tokens"].sum())


def ratio(ours: Sequence[Mapping[str, Any]], against: Path) -> str:
    """One line: this harness' last run against the last row that another engine wrote."""
    theirs = read_csv(against, THROUGHPUT_COLUMNS).iloc[-1]
    mine = ours[-1]
    for column in ("model", "samples", "cells", "methods", "budgets", "device", "dtype"):
        here, there = (sorted(str(row[column]).split()) for row in (mine, theirs))
        if here != there:
            raise UserError(
                f"{against} is of another grid: {column} {theirs[column]!s}, here {mine[column]!s}; "
                "run both alike, on one machine"
            )
    return (
        f"{mine['cells_per_s']:.1f} cells/s against {theirs['cells_per_s']:.2f} of {theirs['engine']}: "
        f"{mine['cells_per_s'] / theirs['cells_per_s']:.0f} times (new tokens {mine['new_tokens']:,} and "
        f"{theirs['new_tokens']:,})"
    )
