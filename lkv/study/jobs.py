"""A study's jobs: which task at which length of which model, and their files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lkv.results.paths import paths

MTBENCH = "mtbench"  # evaluated by rules of its own: two turns, and a judge


class Evaluation(NamedTuple):
    """What one evaluation job measures."""

    benchmark: str
    task: str
    length: int  # 0 where a benchmark's prompts have lengths of their own


def evaluations(config: Mapping[str, Any]) -> list[Evaluation]:
    """Every task at every length; MT-Bench is not among them."""
    ruler = config.get("ruler") or {"tasks": [], "lengths": []}
    of_ruler = [Evaluation("ruler", task, length) for task in ruler["tasks"] for length in ruler["lengths"]]
    others = [
        (benchmark, task) for benchmark in ("longbench", "longproc") for task in tasks(config, benchmark)
    ]
    return of_ruler + [Evaluation(benchmark, task, 0) for benchmark, task in others]


def evaluation(config: Mapping[str, Any], task: str, length: int | str) -> Evaluation:
    return next(job for job in evaluations(config) if (job.task, job.length) == (task, int(length)))


def tasks(config: Mapping[str, Any], benchmark: str) -> list[str]:
    return list((config.get(benchmark) or {"tasks": []})["tasks"])


def files(config: Mapping[str, Any], key: str, models: Iterable[str] | None = None) -> list[str]:
    """The path PATHS[key] of every model and every evaluation."""
    pattern = getattr(paths(config), key)
    return [
        pattern.format(model=model, **job._asdict())
        for model in models or config["models"]
        for job in evaluations(config)
    ]


def sample_files(config: Mapping[str, Any]) -> list[str]:
    """Every file of scored samples; MT-Bench's only if the config names a judge."""
    if not judged(config):
        return files(config, "samples")
    pattern = paths(config).samples
    of_mtbench = [pattern.format(model=model, task=MTBENCH, length=0) for model in config["models"]]
    return files(config, "samples") + of_mtbench


def judged(config: Mapping[str, Any]) -> bool:
    return bool((config.get(MTBENCH) or {}).get("judge"))


def budgets(config: Mapping[str, Any], benchmark: str, length: int = 0) -> list[int]:
    """The benchmark's own budgets, or the study's.

    For prompts of one `length`, only the budgets that evict something, or the smallest one. With length 0,
    where each prompt has its own length, all.
    """
    named = config[benchmark].get("budgets") or config["budgets"]
    return [budget for budget in named if not length or budget < length] or [min(named)]


def ablated_evaluations(config: Mapping[str, Any]) -> list[Evaluation]:
    """The evaluations that all arms are run on as well."""
    return part_of_evaluations(config, "ablation")


def part_of_evaluations(config: Mapping[str, Any], section: str) -> list[Evaluation]:
    """The evaluations whose tasks and lengths a section names, or all; none without the section."""
    own = config[section]
    if not own:
        return []
    named = {"task": own.get("tasks"), "length": own.get("lengths")}
    return [
        job
        for job in evaluations(config)
        if all(names is None or getattr(job, key) in names for key, names in named.items())
    ]


def ablation_files(config: Mapping[str, Any]) -> list[str]:
    """Every file of scored samples of the ablation."""
    pattern = paths(config).ablation_samples
    ablated = ablated_evaluations(config)
    return [pattern.format(model=model, **job._asdict()) for model in config["models"] for job in ablated]


def inspect_files(config: Mapping[str, Any], key: str) -> list[str]:
    """The files that recall_by_layer.csv or kept.csv is joined from; none if nothing is inspected."""
    pattern, inspected = getattr(paths(config), key), part_of_evaluations(config, "inspect")
    return [pattern.format(model=model, **job._asdict()) for model in config["models"] for job in inspected]


def any_of(names: Iterable[object]) -> str:
    """A wildcard constraint that matches these names alone; without names, nothing."""
    return "|".join(re.escape(str(name)) for name in names) or "(?!)"


def total(resources: Mapping[str, Any], name: str) -> int:
    """How many of a resource one snakemake call may use (--resources gpu=2); 1 if it is not given."""
    given = dict(resources).get(name, 1)
    return max(1, int(getattr(given, "value", given)))


def folders(files: Iterable[str]) -> list[str]:
    """The folders of marker files (model.json, lookahead.json); a model's YAML file is kept as it is."""
    return [file if file.endswith(".yaml") else str(Path(file).parent) for file in files]
