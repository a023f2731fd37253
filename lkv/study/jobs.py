"""A study's jobs: which task at which length of which model, and their files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lkv.results.paths import paths

MTBENCH = "mtbench"  # evaluated by rules of its own: two turns, and a judge


class Cell(NamedTuple):
    """What one evaluation job measures."""

    benchmark: str
    task: str
    length: int  # 0 where a benchmark's prompts have lengths of their own


def cells(config: Mapping[str, Any]) -> list[Cell]:
    """Every task at every length, MT-Bench apart."""
    ruler = config.get("ruler") or {"tasks": [], "lengths": []}
    found = [Cell("ruler", task, length) for task in ruler["tasks"] for length in ruler["lengths"]]
    for benchmark in ("longbench", "longproc"):
        found += [Cell(benchmark, task, 0) for task in (config.get(benchmark) or {"tasks": []})["tasks"]]
    return found


def cell(config: Mapping[str, Any], task: str, length: int | str) -> Cell:
    return next(c for c in cells(config) if (c.task, c.length) == (task, int(length)))


def tasks(config: Mapping[str, Any], benchmark: str) -> list[str]:
    return list((config.get(benchmark) or {"tasks": []})["tasks"])


def files(config: Mapping[str, Any], key: str, models: Iterable[str] | None = None) -> list[str]:
    """A path of PATHS for every model and every evaluated cell."""
    pattern = getattr(paths(config), key)
    return [
        pattern.format(model=model, **c._asdict())
        for model in models or config["models"]
        for c in cells(config)
    ]


def sample_files(config: Mapping[str, Any]) -> list[str]:
    """Every file of scored samples: MT-Bench's are there once a judge is named."""
    found = files(config, "samples")
    if judged(config):
        pattern = paths(config).samples
        found += [pattern.format(model=model, task=MTBENCH, length=0) for model in config["models"]]
    return found


def judged(config: Mapping[str, Any]) -> bool:
    return bool((config.get(MTBENCH) or {}).get("judge"))


def budgets(config: Mapping[str, Any], benchmark: str, length: int = 0) -> list[int]:
    """The benchmark's own budgets, or the study's. Of prompts of one length (0: each has its own) those that
    evict something, or the smallest alone."""
    named = config[benchmark].get("budgets") or config["budgets"]
    return [budget for budget in named if not length or budget < length] or [min(named)]


def ablated(config: Mapping[str, Any]) -> list[Cell]:
    """The evaluated cells that the arms are run on as well."""
    return part_of_cells(config, "ablation")


def part_of_cells(config: Mapping[str, Any], section: str) -> list[Cell]:
    """The evaluated cells of the tasks and lengths that a section names, or all; none without the section."""
    own = config[section]
    if not own:
        return []
    named = {"task": own.get("tasks"), "length": own.get("lengths")}
    return [
        c
        for c in cells(config)
        if all(names is None or getattr(c, key) in names for key, names in named.items())
    ]


def ablation_files(config: Mapping[str, Any]) -> list[str]:
    """Every file of scored samples of the ablation."""
    pattern = paths(config).ablation_samples
    return [pattern.format(model=m, **c._asdict()) for m in config["models"] for c in ablated(config)]


def inspect_files(config: Mapping[str, Any], key: str) -> list[str]:
    """The parts of recall_by_layer.csv or kept.csv; none where nothing is inspected."""
    pattern, inspected = getattr(paths(config), key), part_of_cells(config, "inspect")
    return [pattern.format(model=model, **c._asdict()) for model in config["models"] for c in inspected]


def any_of(names: Iterable[object]) -> str:
    """A wildcard constraint that matches these names and nothing else, for no names nothing at all."""
    return "|".join(re.escape(str(name)) for name in names) or "(?!)"


def total(resources: Mapping[str, Any], name: str) -> int:
    """How many of a resource one snakemake call may use (--resources gpu=2); 1 where nobody said."""
    given = dict(resources).get(name, 1)
    return max(1, int(getattr(given, "value", given)))


def folders(files: Iterable[str]) -> list[str]:
    """The folders that marker files (model.json, lookahead.json) stand for; a spec stands for itself."""
    return [file if file.endswith(".yaml") else str(Path(file).parent) for file in files]
