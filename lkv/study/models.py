"""Which models and adapters a study needs, and which methods run on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lkv.registry import SELF, needing
from lkv.results.paths import CARD, PATHS, paths
from lkv.study.arms import main_arm, trained_arms
from lkv.study.schema import at, spec_file


def draft_models(config: Mapping[str, Any]) -> dict[str, str]:
    """Model to draft model, by the sections of the methods that need one."""
    sections = [config.get(name) or {} for name in needing("draft")]
    return {model: draft for section in sections for model, draft in section.get("drafts", {}).items()}


def methods(config: Mapping[str, Any], model: str, of: str | None = None) -> list[str]:
    """The methods that a model is run with; those that need a draft model only if the model has one."""
    named = config[of]["methods"] if of else config["methods"]
    without = [] if model in draft_models(config) else needing("draft", named)
    return [name for name in named if name not in without]


def draft(config: Mapping[str, Any], model: str, of: str | None = None) -> str | None:
    """The draft model of a model, if the model is run with a method that needs one."""
    return draft_models(config).get(model) if needing("draft", methods(config, model, of)) else None


def needed_models(config: Mapping[str, Any]) -> list[str]:
    """The study's models and their draft models."""
    drafts = [draft(config, model) for model in config["models"]]
    return list(dict.fromkeys([*config["models"], *(name for name in drafts if name and name != SELF)]))


def fetched_models(config: Mapping[str, Any]) -> list[str]:
    """The models and draft models whose own weights are used in some stage."""
    stages: list[str | None] = [None, "latency"] if config["methods"] else ["latency"]
    found = []
    for name in config["models"]:
        of_real = [of for of in stages if not has_random_weights(config, name, of)]
        found += [name] * bool(of_real) + [draft(config, name, of) or SELF for of in of_real]
    return [name for name in dict.fromkeys(found) if name != SELF]


def trained(config: Mapping[str, Any]) -> list[str]:
    """The models whose modules are trained here: a stage uses them, and `adapters` does not give them."""
    return [name for name in _adapted_models(config) if name not in config["adapters"]]


def _adapted_models(config: Mapping[str, Any]) -> list[str]:
    """The models whose modules a stage uses; the ablation uses every model's."""
    return [
        name
        for name in config["models"]
        if config["ablation"] or any(adapter(config, name, of) for of in (None, "latency"))
    ]


def adapter_files(config: Mapping[str, Any]) -> list[str]:
    """The marker files of all modules that the study uses: given ones first, then its own by arm."""
    used = [name for name in _adapted_models(config) if name in config["adapters"]]
    given = [published_adapter(config, name) for name in used]
    pattern = paths(config).adapter
    own = [pattern.format(model=m, arm=arm) for m in trained(config) for arm in trained_arms(config)]
    return list(dict.fromkeys(given)) + own


def published_adapter(config: Mapping[str, Any], model: str) -> str:
    """The marker file of the modules that `adapters` gives a model."""
    return str(at(Path(config["adapters"][model]) / CARD))


def adapter(config: Mapping[str, Any], model: str, of: str | None = None) -> list[str]:
    """The marker file of a model's modules; empty if LookaheadKV is not run, or with random weights."""
    if "lookaheadkv" not in methods(config, model, of) or has_random_weights(config, model, of):
        return []
    if model in config["adapters"]:
        return [published_adapter(config, model)]
    return [paths(config).adapter.format(model=model, arm=main_arm(config))]


def has_random_weights(config: Mapping[str, Any], model: str, of: str | None = "latency") -> bool:
    """True if a model is timed with random weights of the shape in its file."""
    return of == "latency" and model in config["latency"]["random"]


def draft_card(config: Mapping[str, Any], model: str, of: str | None = None) -> list[str]:
    """The marker file of a model's draft model, if any; its YAML file if random weights are enough."""
    name = draft(config, model, of)
    if name in (None, SELF):
        return []
    return [spec_file(name) if has_random_weights(config, model, of) else PATHS["model"].format(model=name)]


def timed_model(config: Mapping[str, Any], model: str) -> str:
    """The file that the latency study reads of a model: marker file, or YAML file for random weights."""
    return spec_file(model) if has_random_weights(config, model) else PATHS["model"].format(model=model)
