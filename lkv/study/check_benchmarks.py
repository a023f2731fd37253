"""Checks of a study's benchmarks: tasks, lengths and the texts that they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lkv.bench import longproc
from lkv.bench.longbench import tasks as longbench
from lkv.bench.ruler import tasks as ruler
from lkv.errors import UserError, one_of
from lkv.study.commands import local, ruler_sources
from lkv.study.jobs import MTBENCH, evaluations, tasks


def check_benchmarks(study: Mapping[str, Any], root: Path, source: str) -> None:
    known: dict[str, Mapping[str, object]] = {
        "ruler": ruler.TASKS,
        "longbench": longbench.TASKS,
        "longproc": longproc.TASKS,
    }
    if any(study.get(benchmark) for benchmark in (*known, MTBENCH)):
        for key in ("methods", "budgets"):
            if not study[key]:
                raise UserError(f"{source}: the key {key!r} is missing or empty, which a benchmark needs")
    for benchmark, allowed in known.items():
        for task in tasks(study, benchmark):
            if task not in allowed:
                raise one_of(f"{benchmark} task in {source}, {benchmark}.tasks:", task, allowed)
    _check_texts(study, root, source)


def _check_texts(study: Mapping[str, Any], root: Path, source: str) -> None:
    """The texts that generated RULER tasks read are named and there."""
    made = study.get("ruler")
    if not made or made["ready"] is not None:
        return
    for task in made["tasks"]:
        for key in ruler_sources(task):
            file = made[key]
            if file is None:
                raise UserError(
                    f"{source}, ruler.{key}: the task {task} reads a text of yours; name it, or drop the task"
                )
            if local(file) and not (root / local(file)).is_file():
                raise UserError(f"{source}, ruler.{key}: no such file: {file}; correct the path")


def check_part(
    study: Mapping[str, Any], section: str, key: str, names: Sequence[Any] | None, source: str
) -> None:
    """A section's `tasks` or `lengths` are among those that the study evaluates."""
    known = list(dict.fromkeys(getattr(job, key[:-1]) for job in evaluations(study)))
    for name in names or []:
        if name not in known:
            raise one_of(f"{key[:-1]} in {source}, {section}.{key}:", name, known)
