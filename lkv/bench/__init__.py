"""Benchmarks: each module builds records (`build`) and scores an answer to one (`score`, 0 to 100)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from lkv.errors import one_of

MODULES = {
    "ruler": "lkv.bench.ruler.tasks",
    "longbench": "lkv.bench.longbench.tasks",
    "longproc": "lkv.bench.longproc",
}


def score(record: Mapping[str, Any], prediction: str) -> float:
    """0 to 100 for one answer, by the record's benchmark and metric."""
    if record["benchmark"] not in MODULES:
        raise one_of("benchmark", record["benchmark"], MODULES)
    return float(import_module(MODULES[record["benchmark"]]).score(prediction, record))
