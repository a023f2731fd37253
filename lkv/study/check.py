"""Whether a study's config makes sense: read, checked and filled with defaults.

Light: it imports neither torch nor snakemake, so that the rules and the tests call it directly.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lkv.errors import UserError, one_of
from lkv.files.strict_yaml import read_yaml
from lkv.registry import FULL, METHODS, SELF, needing
from lkv.results.paths import CARD
from lkv.study.budgets import check_sizes
from lkv.study.check_benchmarks import check_benchmarks, check_part
from lkv.study.check_training import check_ablation, check_trainings
from lkv.study.models import draft, draft_models
from lkv.study.schema import at, check, model_spec
from lkv.study.settings.json_schema import study_schema


def read_config(path: Path, root: Path = Path()) -> dict[str, Any]:
    """The checked study config in the file `path`."""
    if not path.is_file():
        raise UserError(f"no such config: {path}; one is a file like config/demo.yaml")
    return validate(read_yaml(path), root, str(path))


def validate(config: Mapping[str, Any], root: Path = Path(), source: str = "config") -> dict[str, Any]:
    """The study config with its defaults filled in.

    Raises a UserError of one line that starts with `source` and names the key, its value and what is allowed.
    """
    study = check(config, study_schema(), source)
    _check_methods(study, source)
    drafts = [name for name in draft_models(study).values() if name != SELF]
    specs = {name: model_spec(name, root, source) for name in [*study["models"], *drafts]}
    _check_adapters(study, root, source)
    check_trainings(study, specs, source)
    if inspected := study["inspect"]:
        check_part(study, "inspect", "lengths", inspected["lengths"], source)
    _check_latency(study, root, source)
    check_benchmarks(study, root, source)
    if study["ablation"]:
        check_ablation(study, source)
    check_sizes(study, specs, source)
    return study


def _check_methods(study: Mapping[str, Any], source: str) -> None:
    known = [FULL, *METHODS]
    for key, names in (("methods", study["methods"]), ("latency.methods", study["latency"]["methods"])):
        for name in names:
            if name not in known:
                raise one_of(f"method in {source}, {key}:", name, known)
        for name in needing("draft", names):
            if not study[name]["drafts"]:
                raise UserError(
                    f"{source}, {key}: {name} needs draft models; name one a model in {name}.drafts, or self"
                )
    if FULL not in study["latency"]["methods"]:
        raise UserError(
            f"{source}, latency.methods: {FULL!r} is missing; overheads are counted from it, so add it"
        )
    for section in needing("draft"):
        for name in study[section]["drafts"]:
            if name not in study["models"]:
                way_out = "give one of the study's models, or drop the entry"
                raise one_of(f"model in {source}, {section}.drafts:", name, study["models"], way_out)


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
                f"{source}, adapters.{name}: modules are given, but ablation.arms are compared with modules "
                "trained here; drop one of the two"
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
