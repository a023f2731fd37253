"""What the workflow knows of a study: its files, its targets, and whether its config makes sense.

Pure and light (no torch, no snakemake): the rules read values from here, the tests call it directly.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import Any

from lkv.bench import longproc
from lkv.bench.longbench import tasks as longbench
from lkv.bench.ruler import tasks as ruler
from lkv.data.prompts import KINDS
from lkv.data.schemas import SCHEMAS as PROMPT_SCHEMAS
from lkv.errors import UserError, one_of
from lkv.files.strict_yaml import read_yaml
from lkv.registry import FULL, METHODS, SELF
from lkv.results.paths import CARD
from lkv.study.arms import arms, reference_arm
from lkv.study.budgets import check_study
from lkv.study.commands import NOT_GIVEN, local, ruler_sources
from lkv.study.jobs import MTBENCH, cells, tasks
from lkv.study.models import draft, trained
from lkv.study.schema import at, check, model_spec
from lkv.study.settings.json_schema import study_schema


def read_config(path: Path, root: Path = Path()) -> dict[str, Any]:
    """The study config in a file, checked."""
    if not path.is_file():
        raise UserError(f"no such config: {path}; one is a file like config/demo.yaml")
    return validate(read_yaml(path), root, str(path))


def validate(config: Mapping[str, Any], root: Path = Path(), source: str = "config") -> dict[str, Any]:
    """The study config with its defaults filled in, or a UserError of one line that starts with `source`."""
    study = check(config, study_schema(), source)
    _check_methods(study, source)
    drafts = [name for name in study["speckv"]["drafts"].values() if name != SELF]
    specs = {name: model_spec(name, root, source) for name in [*study["models"], *drafts]}
    _check_adapters(study, root, source)
    if train := study["train"]:
        for name in study["models"]:
            given = name in study["adapters"] or train["learning_rate"]
            if not given and not specs[name]["learning_rate"]:
                raise UserError(
                    f"{source}, train.learning_rate: missing, and config/models/{name}.yaml has none; "
                    "give a number above 0"
                )
        for name, values in arms(study).items():
            place = f"{source}, train" if name == train["arm"] else f"{source}, ablation.arms.{name}"
            _check_training(values, place)
    elif needing := trained(study):
        raise UserError(
            f"{source}, train: missing, and lookaheadkv needs modules for {', '.join(needing)}; add it, or "
            "name folders of trained ones in adapters"
        )
    if inspected := study["inspect"]:
        _check_part(study, "inspect", "lengths", inspected["lengths"], source)
    _check_latency(study, root, source)
    _check_benchmarks(study, root, source)
    if study["ablation"]:
        _check_ablation(study, source)
    check_study(study, specs, source)
    return study


def _check_methods(study: Mapping[str, Any], source: str) -> None:
    known = [FULL, *METHODS]
    for key, names in (("methods", study["methods"]), ("latency.methods", study["latency"]["methods"])):
        for name in names:
            if name not in known:
                raise one_of(f"method in {source}, {key}:", name, known)
        if "speckv" in names and not study["speckv"]["drafts"]:
            raise UserError(
                f"{source}, {key}: speckv needs draft models; name one a model in speckv.drafts, or self"
            )
    if FULL not in study["latency"]["methods"]:
        raise UserError(
            f"{source}, latency.methods: {FULL!r} is missing; overheads are counted from it, so add it"
        )
    for name in study["speckv"]["drafts"]:
        if name not in study["models"]:
            way_out = "give one of the study's models, or drop the entry"
            raise one_of(f"model in {source}, speckv.drafts:", name, study["models"], way_out)


def _check_adapters(study: Mapping[str, Any], root: Path, source: str) -> None:
    for name, folder in study["adapters"].items():
        if name not in study["models"]:
            way_out = "give one of the study's models, or drop the entry"
            raise one_of(f"model in {source}, adapters:", name, study["models"], way_out)
        if not at(Path(folder) / CARD, root).is_file():
            raise UserError(
                f"{source}, adapters.{name}: no {CARD} in {folder}; give a folder of trained modules, as lkv "
                "train writes it, or drop the entry and they are trained"
            )
        if study["ablation"]:
            raise UserError(
                f"{source}, adapters.{name}: given modules have no arms beside them, which ablation.arms "
                "compares with the study's own trained arm; drop one of the two"
            )


def _check_latency(study: Mapping[str, Any], root: Path, source: str) -> None:
    repeats, lengths = study["latency"]["repeats"], study["latency"]["lengths"]
    if isinstance(repeats, list) and len(repeats) != len(lengths):
        raise UserError(
            f"{source}, latency.repeats: {len(repeats)} numbers for {len(lengths)} lengths; give one number, "
            "or one a length"
        )
    for name in study["latency"]["random"]:
        if name not in study["models"]:
            raise one_of(f"model in {source}, latency.random:", name, study["models"])
        for made in (name, draft(study, name, "latency")):
            if made not in (None, SELF) and model_spec(made, root, source)["shape"] is None:
                raise UserError(
                    f"{source}, latency.random: config/models/{made}.yaml has no `shape` to make random "
                    "weights from; add it, or time real ones"
                )


def _check_ablation(study: Mapping[str, Any], source: str) -> None:
    own = study["ablation"]
    if study["train"]["arm"] in own["arms"]:
        raise UserError(
            f"{source}, ablation.arms: {study['train']['arm']!r} is the study's own arm (train.arm); "
            "give another name"
        )
    if reference_arm(study) not in arms(study):
        raise one_of(f"arm in {source}, ablation.reference:", own["reference"], arms(study))
    for name in own["beside"]:
        if name not in own["arms"]:
            raise one_of(f"arm in {source}, ablation.beside:", name, own["arms"])
    for key in ("tasks", "lengths"):
        _check_part(study, "ablation", key, own[key], source)


def _check_part(
    study: Mapping[str, Any], section: str, key: str, names: Sequence[Any] | None, source: str
) -> None:
    """Whether `names` of a section's `tasks` or `lengths` are among the study's."""
    known = list(dict.fromkeys(getattr(c, key[:-1]) for c in cells(study)))
    for name in names or []:
        if name not in known:
            raise one_of(f"{key[:-1]} in {source}, {section}.{key}:", name, known)


def _check_training(train: Mapping[str, Any], place: str) -> None:
    if (train["mixture"] is None) == (train["sources"] is None):
        given = "neither" if train["mixture"] is None else "both"
        raise UserError(f"{place}: {given} of mixture and sources given; give one of them")
    if train["mixture"] is not None:
        for key in ("samples", "lengths"):
            if train[key] is None:
                raise UserError(f"{place}: the key {key!r} is missing, which a mixture needs")
        for kind in train["mixture"]:
            if kind not in KINDS:
                raise one_of(f"kind of training prompt in {place}.mixture:", kind, KINDS)
    else:
        for item in train["sources"]:
            if item["schema"] not in PROMPT_SCHEMAS:
                raise one_of(f"schema in {place}.sources:", item["schema"], PROMPT_SCHEMAS)
        if train["answers"] == "given":
            raise UserError(f"{place}.answers: given, but {NOT_GIVEN}; allowed: model, or a mixture")
    samples = train["samples"] or sum(item["count"] for item in train["sources"])
    if samples - train["held_out"] < train["batch"]:
        raise UserError(
            f"{place}.samples: {samples} less {train['held_out']} held out do not fill a "
            f"batch of {train['batch']}; allowed: {train['held_out'] + train['batch']} or more"
        )
    if train["warmup_steps"] > train["steps"]:
        raise UserError(
            f"{place}.warmup_steps: {train['warmup_steps']} is more than the {train['steps']} steps; "
            "allowed: 0 to the steps"
        )


def _check_benchmarks(study: Mapping[str, Any], root: Path, source: str) -> None:
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
    made = study.get("ruler")
    for task in tasks(study, "ruler") if made and made["ready"] is None else []:
        for key in ruler_sources(task):
            file = made[key]  # type: ignore[index]
            if file is None:
                raise UserError(
                    f"{source}, ruler.{key}: the task {task} reads a text of yours; name it, or drop the task"
                )
            if local(file) and not (root / local(file)).is_file():
                raise UserError(f"{source}, ruler.{key}: no such file: {file}; correct the path")


def check_files(config: Mapping[str, Any], rules: Iterable[str], source: str = "config") -> None:
    """Refuses what a key names and is not there, of the keys that jobs of these rules read."""
    needed = set(rules)
    for rule, place, path in _named_files(config):
        if rule in needed and not (Path(path).exists() or glob(path)):
            raise UserError(f"{source}, {place}: no such file or folder: {path}; correct the path")


def _named_files(config: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(rule that reads it, config key, path) of the files and folders that a config names."""
    ruler, longproc, mtbench = (config.get(name) or {} for name in ("ruler", "longproc", MTBENCH))
    asked = {
        ("data_ruler", "ruler.ready"): ruler.get("ready"),
        ("data_given", "longbench.source"): (config.get("longbench") or {}).get("source"),
        ("data_given", "longproc.data"): longproc.get("data"),
        ("mtbench", "mtbench.questions"): mtbench.get("questions"),
        ("mtbench", "mtbench.references"): mtbench.get("references"),
        ("judge", "mtbench.judge.prompts"): (mtbench.get("judge") or {}).get("prompts"),
    }
    for name, arm in arms(config).items():
        for item in arm["sources"] or []:
            data = item["data"] if isinstance(item["data"], list) else [item["data"]]
            for number, one in enumerate(data):
                asked["data_train", f"sources of the arm {name}, {item['name']}, data[{number}]"] = one
    for (rule, place), given in asked.items():
        kind, _, rest = (given or "hub:").partition(":")
        path = rest if kind in ("folder", "zip", "file") else given or ""
        if kind != "hub":
            yield rule, place, os.path.expanduser(path)
