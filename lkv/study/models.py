"""Which models and adapters a study needs, and which methods run on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lkv.registry import SELF
from lkv.results.paths import CARD, PATHS, paths
from lkv.study.arms import main_arm, trained_arms
from lkv.study.schema import at, spec_file


def methods(config: Mapping[str, Any], model: str, of: str | None = None) -> list[str]:
    """The methods that a model is run under: SpecKV only where it has a draft."""
    named = config[of]["methods"] if of else config["methods"]
    return [name for name in named if name != "speckv" or model in config["speckv"]["drafts"]]


def draft(config: Mapping[str, Any], model: str, of: str | None = None) -> str | None:
    """SpecKV's draft model for a model, where that is run under SpecKV."""
    return config["speckv"]["drafts"].get(model) if "speckv" in methods(config, model, of) else None


def needed_models(config: Mapping[str, Any]) -> list[str]:
    """The study's models and their drafts."""
    drafts = [draft(config, model) for model in config["models"]]
    return list(dict.fromkeys([*config["models"], *(name for name in drafts if name and name != SELF)]))


def fetched_models(config: Mapping[str, Any]) -> list[str]:
    """The models, drafts too, that are run as they are and not as a shape alone."""
    stages: list[str | None] = [None, "latency"] if config["methods"] else ["latency"]
    found = []
    for name in config["models"]:
        of_real = [of for of in stages if not shape_alone(config, name, of)]
        found += [name] * bool(of_real) + [draft(config, name, of) or SELF for of in of_real]
    return [name for name in dict.fromkeys(found) if name != SELF]


def trained(config: Mapping[str, Any]) -> list[str]:
    """The models whose modules are trained here: those that a stage uses and `adapters` does not give."""
    return [name for name in _adapted(config) if name not in config["adapters"]]


def _adapted(config: Mapping[str, Any]) -> list[str]:
    """The models whose modules a stage uses; the ablation uses every model's."""
    return [
        name
        for name in config["models"]
        if config["ablation"] or any(adapter(config, name, of) for of in (None, "latency"))
    ]


def adapter_files(config: Mapping[str, Any]) -> list[str]:
    """The marker files of all modules that the study uses: the given ones, then its own, arm by arm."""
    given = [given_card(config, name) for name in _adapted(config) if name in config["adapters"]]
    pattern = paths(config).adapter
    own = [pattern.format(model=m, arm=arm) for m in trained(config) for arm in trained_arms(config)]
    return list(dict.fromkeys(given)) + own


def given_card(config: Mapping[str, Any], model: str) -> str:
    """The marker file of the modules that `adapters` gives a model."""
    return str(at(Path(config["adapters"][model]) / CARD))


def adapter(config: Mapping[str, Any], model: str, of: str | None = None) -> list[str]:
    """The adapter's marker file, where LookaheadKV is among the methods and its weights matter."""
    if "lookaheadkv" not in methods(config, model, of) or shape_alone(config, model, of):
        return []
    if model in config["adapters"]:
        return [given_card(config, model)]
    return [paths(config).adapter.format(model=model, arm=main_arm(config))]


def shape_alone(config: Mapping[str, Any], model: str, of: str | None = "latency") -> bool:
    """Whether a model is timed with random weights, made from the shape in its spec."""
    return of == "latency" and model in config["latency"]["random"]


def draft_card(config: Mapping[str, Any], model: str, of: str | None = None) -> list[str]:
    """The marker file of a model's draft model, where there is one; its spec, where the shape is enough."""
    name = draft(config, model, of)
    if name in (None, SELF):
        return []
    return [spec_file(name) if shape_alone(config, model, of) else PATHS["model"].format(model=name)]


def timed_model(config: Mapping[str, Any], model: str) -> str:
    """What stands for a model in the latency study: its marker file, or its spec for a shape alone."""
    return spec_file(model) if shape_alone(config, model) else PATHS["model"].format(model=model)
