"""What the workflow knows of a study: its files, its targets, and whether its config makes sense.

Pure and light (no torch, no snakemake): the rules read values from here, the tests call it directly.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from lkv.bench.ruler import TASKS
from lkv.data.prompts import KINDS
from lkv.errors import UserError, one_of
from lkv.registry import FULL, METHODS

SCHEMAS = Path(__file__).resolve().parents[1] / "workflow/schemas"

# {study} and {arm} are filled from the config, the rest are the rules' wildcards.
PATHS = {
    "model": "models/{model}/model.json",
    "train_data": "data/{study}/train/{model}/{arm}.jsonl",
    "train_facts": "data/{study}/train/{model}/{arm}.json",
    "ruler": "data/{study}/ruler/{model}/{task}@{length}.jsonl",
    "ruler_facts": "data/{study}/ruler/{model}/{task}@{length}.json",
    "adapter": "results/{study}/adapters/{model}/{arm}/lookahead.json",
    "training_part": "results/{study}/training/{model}/{arm}.csv",
    "journal": "results/{study}/journal/{model}/{task}@{length}.jsonl",
    "samples": "results/{study}/samples/{model}/{task}@{length}.csv",
    "latency_part": "results/{study}/latency/{model}.csv",
    "accuracy": "results/{study}/accuracy.csv",
    "paired": "results/{study}/paired.csv",
    "training": "results/{study}/training.csv",
    "latency": "results/{study}/latency.csv",
    "config": "results/{study}/config.yaml",
    "provenance": "results/{study}/provenance.json",
}

# What each plot reads, by the keys of PATHS, and the formats of a report.
PLOTS = {
    "latency": ("latency",),
    "pareto": ("accuracy", "latency"),
    "training": ("training", "provenance"),
    "accuracy": ("accuracy", "provenance"),
}
REPORTS = {"table1": ("pdf", "csv", "md", "tex")} | dict.fromkeys(PLOTS, ("pdf", "svg", "png"))

# A stage's number is raised by hand when its code changes what it writes: finished studies then run it again.
VERSIONS = {"model": 1, "data": 1, "train": 1, "evaluate": 1, "latency": 1, "summarise": 1, "report": 1}

# The config key, and the flag of `lkv data ruler`, that says where a task's haystack comes from.
SOURCES = {"essays": "haystack", "squad": "squad", "hotpotqa": "hotpotqa"}


def paths(config: Mapping[str, Any]) -> SimpleNamespace:
    """PATHS with the study's and the training arm's names filled in; the wildcards stay."""
    names = {"{study}": config["study"], "{arm}": config["train"]["arm"]}
    return SimpleNamespace(
        **{key: re.sub("{study}|{arm}", lambda m: names[m[0]], path) for key, path in PATHS.items()}
    )


def reports() -> list[str]:
    """Every file that `snakemake all` renders for the configured study."""
    return [f"reports/{name}.{ending}" for name, endings in REPORTS.items() for ending in endings]


def published(configured: str, root: Path = Path()) -> list[str]:
    """Studies whose results lie here as plain files, the configured one apart."""
    found = (path.parent.name for path in root.glob("results/*/provenance.json"))
    return sorted(name for name in found if name != configured)


def plotted(kind: str, study: str) -> list[str]:
    """The result files that a plot of a study reads."""
    return [PATHS[key].format(study=study) for key in PLOTS[kind]]


def any_of(names: Iterable[object]) -> str:
    """A wildcard constraint that matches these names and nothing else, for no names nothing at all."""
    return "|".join(re.escape(str(name)) for name in names) or "(?!)"


def total(resources: Mapping[str, Any], name: str) -> int:
    """How many of a resource one snakemake call may use (--resources gpu=2); 1 where nobody said."""
    given = dict(resources).get(name, 1)
    return max(1, int(getattr(given, "value", given)))


def ruler_sources(task: str) -> list[str]:
    """The config keys, and `lkv data ruler` flags, of the text that a RULER task reads: one, or none."""
    return [SOURCES[kind] for kind in [TASKS[task].haystack] if kind in SOURCES]


def ruler_files(ruler: Mapping[str, Any], task: str) -> list[str]:
    """The local files behind them; `pydoc` is none."""
    return [ruler[key] for key in ruler_sources(task) if ruler[key] != "pydoc"]


def folders(files: Iterable[str]) -> list[str]:
    """The folders that marker files (model.json, lookahead.json) stand for."""
    return [str(Path(file).parent) for file in files]


def shell_prefix(cpus: int) -> str:
    """Bash before every job: stop at errors; no more threads than CPUs (`--cores 8` on a smaller machine)."""
    fewer = f"$((OMP_NUM_THREADS < {cpus} ? OMP_NUM_THREADS : {cpus}))"
    return f"set -euo pipefail; export OMP_NUM_THREADS={fewer}; export MKL_NUM_THREADS=$OMP_NUM_THREADS; "


def flags(values: Mapping[str, Any], *keys: str) -> list[str]:
    """Command-line words `--key value ...`; a mapping becomes k=v words, None or nothing no flag at all."""
    words: list[str] = []
    for key in keys:
        value = values[key]
        if isinstance(value, Mapping):
            value = [f"{name}={amount}" for name, amount in value.items()]
        items = value if isinstance(value, list) else [] if value is None else [value]
        if items:
            words += [f"--{key.replace('_', '-')}", *map(str, items)]
    return words


def validate(config: Mapping[str, Any], root: Path = Path(), source: str = "config") -> dict[str, Any]:
    """The study config with its defaults filled in, or a UserError of one line that starts with `source`."""
    study = check(config, SCHEMAS / "config.schema.yaml", source)
    latency, ruler, train = study["latency"], study["ruler"], study["train"]
    known = [FULL, *METHODS]
    for key, methods in (("methods", study["methods"]), ("latency.methods", latency["methods"])):
        for name in methods:
            if name not in known:
                raise one_of(f"method in {source}, {key}:", name, known)
    if FULL not in latency["methods"]:
        raise UserError(
            f"{source}, latency.methods: {FULL!r} is missing; overheads are counted from it, so add it"
        )
    for kind in train["mixture"]:
        if kind not in KINDS:
            raise one_of(f"kind of training prompt in {source}, train.mixture:", kind, KINDS)
    if train["samples"] - train["held_out"] < train["batch"]:
        raise UserError(
            f"{source}, train.samples: {train['samples']} less {train['held_out']} held out do not fill a "
            f"batch of {train['batch']}; allowed: {train['held_out'] + train['batch']} or more"
        )
    if train["warmup_steps"] > train["steps"]:
        raise UserError(
            f"{source}, train.warmup_steps: {train['warmup_steps']} is more than the {train['steps']} steps; "
            "allowed: 0 to train.steps"
        )
    for task in ruler["tasks"]:
        if task not in TASKS:
            raise one_of(f"RULER task in {source}, ruler.tasks:", task, TASKS)
        for key in ruler_sources(task):
            file = ruler[key]
            if file is None:
                raise UserError(
                    f"{source}, ruler.{key}: the task {task} reads a local file; name it, or drop the task"
                )
            if file != "pydoc" and not (root / file).is_file():
                raise UserError(f"{source}, ruler.{key}: no such file: {file}; correct the path")
    for name in study["models"]:
        model_spec(name, root, source)
    return study


def model_spec(name: str, root: Path = Path(), source: str = "config") -> dict[str, Any]:
    """The checked content of config/models/NAME.yaml."""
    path = Path("config/models") / f"{name}.yaml"
    if not (root / path).is_file():
        known = sorted(spec.stem for spec in (root / path.parent).glob("*.yaml"))
        raise one_of(f"model in {source}, models:", name, known, f"a new one is a file {path}")
    return read_spec(root / path, str(path))


def read_spec(path: Path, source: str = "") -> dict[str, Any]:
    """The checked content of a model spec, whose name is its file's; errors start with `source`."""
    source = source or str(path)
    if not path.is_file():
        raise UserError(f"no such model spec: {path}; one is a file like config/models/NAME.yaml")
    try:
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not YAML ({' '.join(str(error).split())})") from None
    spec = check(spec, SCHEMAS / "model.schema.yaml", source)
    if spec["name"] != path.stem:
        allowed = f"allowed: {path.stem}"
        raise UserError(f"{source}, name: {spec['name']!r} differs from the file's name; {allowed}")
    return spec


def check(value: Any, schema_file: Path, source: str) -> dict[str, Any]:
    """`value` with the schema's defaults, or a UserError: the first wrong key, its value, what is allowed."""
    schema = yaml.safe_load(schema_file.read_text(encoding="utf-8"))
    filled = _with_defaults(value, schema)
    try:
        from jsonschema import Draft202012Validator
    except ModuleNotFoundError:  # a machine that only runs verbs: the workflow's has checked the file
        return dict(filled)
    # In one place an unknown key comes before a missing one (the schemas' order): often it is that, misspelt.
    errors = sorted(
        Draft202012Validator(schema).iter_errors(filled),
        key=lambda error: [str(part) for part in error.absolute_path],
    )
    if errors:
        raise _explained(errors[0], source)
    return dict(filled)


def _with_defaults(value: Any, schema: Mapping[str, Any]) -> Any:
    """Schema defaults for absent keys, objects within objects too; keys in the schema's order."""
    if not isinstance(value, Mapping) or "properties" not in schema:
        return copy.deepcopy(value)
    filled = {}
    for key, part in schema["properties"].items():
        if key in value or "default" in part:
            filled[key] = _with_defaults(value.get(key, part.get("default")), part)
    return filled | {key: value[key] for key in value if key not in filled}


def _explained(error: Any, source: str) -> UserError:
    """One line from a jsonschema error."""
    place = f"{source}, {_dotted(error.absolute_path)}" if error.absolute_path else source
    match error.validator:
        case "additionalProperties":
            known = error.schema["properties"]
            return one_of(f"key in {place}:", next(key for key in error.instance if key not in known), known)
        case "required":
            key = next(key for key in error.validator_value if key not in error.instance)
            meaning = error.schema.get("properties", {}).get(key, {}).get("description", "")
            return UserError(f"{place}: the key {key!r} is missing; it holds: {meaning}")
        case "enum":
            return one_of(f"value in {place}:", error.instance, error.validator_value)
    given = json.dumps(error.instance, ensure_ascii=False, default=str)
    return UserError(
        f"{place}: {given} is not allowed; allowed: {error.schema.get('description', error.message)}"
    )


def _dotted(keys: Sequence[str | int]) -> str:
    """train.lengths[0] for the path train, lengths, 0."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return text.removeprefix(".")
