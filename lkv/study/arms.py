"""A study's trainings: the main one and those of its ablation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The keys of `train` that decide which training prompts an arm has.
DATA_KEYS = ("samples", "lengths", "response_tokens", "answers", "mixture", "sources", "max_tokens")


def main_arm(config: Mapping[str, Any]) -> str:
    """The arm that tables show as LookaheadKV."""
    return str((config.get("train") or {"arm": "main"}).get("arm", "main"))


def reference_arm(config: Mapping[str, Any]) -> str:
    """The arm that the other arms are compared with."""
    return str((config["ablation"] or {}).get("reference") or main_arm(config))


def arms(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Arm → its values of `train` and `lookaheadkv`; the main arm comes first."""
    if not config["train"]:
        return {}
    main = config["train"] | config["lookaheadkv"]
    others = (config["ablation"] or {"arms": {}})["arms"]
    return {main["arm"]: main} | {name: main | own | {"arm": name} for name, own in others.items()}


def same_data(config: Mapping[str, Any], arm: str) -> str:
    """The first arm with the same training prompts as `arm`.

    Prompts of a mixture also serve an arm of shorter answers, because greedy answers begin alike. Those of
    data sets do not: which of them fit depends on the length of the answers.
    """
    known = arms(config)
    own, keys = known[arm], [key for key in DATA_KEYS if key != "response_tokens" or known[arm]["sources"]]
    return next(
        name
        for name, other in known.items()
        if all(other[key] == own[key] for key in keys) and other["response_tokens"] >= own["response_tokens"]
    )


def same_modules(config: Mapping[str, Any], arm: str) -> str:
    """The first arm with the same trained modules as `arm`; how they choose entries may differ."""
    known, keys = arms(config), [key for key in config["train"] if key not in ("arm", "gpus")]
    return next(name for name, own in known.items() if all(own[key] == known[arm][key] for key in keys))


def trained_arms(config: Mapping[str, Any]) -> list[str]:
    """Arms that have modules of their own."""
    return [name for name in arms(config) if same_modules(config, name) == name]


def trained_data(config: Mapping[str, Any]) -> list[str]:
    """Arms that have training prompts of their own."""
    return list(dict.fromkeys(same_data(config, name) for name in trained_arms(config)))


def train_seed(config: Mapping[str, Any], arm: str) -> int:
    """Seed of an arm's initial modules and of its prompts' order; the study's seed makes the prompts."""
    own = arms(config)[arm]["seed"]
    return int(config["seed"] if own is None else own)


def spread(config: Mapping[str, Any], arm: str, gpus: int) -> int:
    """Number of processes, each on a GPU of its own, that share an arm's training, of `gpus` at most."""
    return max(1, min(int(arms(config)[arm]["gpus"]), gpus))
