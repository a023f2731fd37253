"""Turns a study's config into words of the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lkv.bench.ruler import tasks as ruler
from lkv.registry import SELF
from lkv.results.paths import paths
from lkv.study.arms import arms, reference_arm, same_data, same_modules
from lkv.study.jobs import MTBENCH, budgets, folders
from lkv.study.models import draft, has_random_weights, timed_model
from lkv.study.schema import model_spec
from lkv.study.settings.declare import declared
from lkv.study.settings.training import Choosing

# The config key, and the flag of `lkv data ruler`, that says where a task's haystack comes from.
SOURCES = {"essays": "haystack", "squad": "squad", "hotpotqa": "hotpotqa"}
RECIPE_KEYS = tuple(declared(Choosing))  # in the order of the command line
NOT_GIVEN = "the true answers are known of offline prompts alone, not of data sets"


def arm_words(config: Mapping[str, Any], model: str) -> list[str]:
    """Command-line words `arm=folder,key=value,…` for every arm of the ablation, the reference first."""
    words, known = [], arms(config)
    for name, own in {reference_arm(config): known[reference_arm(config)], **known}.items():
        of_arm = same_modules(config, name)
        [folder] = folders([paths(config).adapter.format(model=model, arm=of_arm)])
        words.append(f"{name}={folder}," + ",".join(f"{key}={own[key]}" for key in RECIPE_KEYS))
    return words


def ablation_flags(config: Mapping[str, Any]) -> list[str]:
    own = config["ablation"]
    return flags(own | {"budgets": own["budgets"] or config["budgets"]}, "budgets", "samples") if own else []


def latency_flags(config: Mapping[str, Any], model: str) -> list[str]:
    """Command-line words that say which model is timed, and how."""
    own, flag = config["latency"], "--shape" if has_random_weights(config, model) else "--model"
    words = [flag, *folders([timed_model(config, model)])]
    words += flags(own, "lengths", "budgets", "repeats", "warmups", "ways")
    return words + (["--batches"] if own["batches"] else [])


def method_flags(
    config: Mapping[str, Any],
    model: str,
    adapters: Sequence[str],
    drafts: Sequence[str],
    of: str | None = None,
) -> list[str]:
    """Command-line words for what methods need: adapter, draft model, and how LookaheadKV chooses."""
    given = {
        "adapter": folders(adapters) or None,
        "draft": (folders(drafts) or [SELF]) if draft(config, model, of) else None,
    }
    return flags(given, *given) + flags(config["lookaheadkv"], *RECIPE_KEYS)


def protocol_flags(config: Mapping[str, Any]) -> list[str]:
    """Command-line words for the protocol; the model's file decides what they leave out."""
    own = config["protocol"]
    words = flags({"protocol": own["name"], **own}, "protocol", "template", "max_prompt")
    return words + ([] if own["question_aware"] else ["--question-blind"])


def given_flags(config: Mapping[str, Any], benchmark: str) -> list[str]:
    """Command-line words for a benchmark with given records: where they are, and how many to use."""
    where = {"longbench": "source", "longproc": "data_folder"}[benchmark]
    values = config[benchmark] | {"data_folder": config[benchmark].get("data")}
    return flags(values, where, "samples", "max_new_tokens")


def inspect_flags(config: Mapping[str, Any], benchmark: str) -> list[str]:
    """Command-line words for what is inspected, if anything is."""
    own = config["inspect"]
    given = own and own | {"budgets": own["budgets"] or budgets(config, benchmark)}
    return flags(given, "budgets", "samples") if given else []


def mtbench_flags(config: Mapping[str, Any]) -> list[str]:
    own = config.get(MTBENCH)
    return (
        flags(
            own | {"budgets": budgets(config, MTBENCH)},
            "questions",
            "references",
            "samples",
            "max_new_tokens",
            "budgets",
        )
        if own
        else []
    )


def judge_flags(config: Mapping[str, Any]) -> list[str]:
    own = (config.get(MTBENCH) or {}).get("judge")
    return flags(own, *own) if own else []


def train_flags(config: Mapping[str, Any], model: str, arm: str, root: Path = Path()) -> list[str]:
    """Command-line words for an arm's training; a rate that the arm leaves open is the model's."""
    known = arms(config)
    own = known[arm]
    own["learning_rate"] = own["learning_rate"] or model_spec(model, root)["learning_rate"]
    what = ["arm", "tokens", "lora", "loss"]
    if own["response_tokens"] < known[same_data(config, arm)]["response_tokens"]:
        what.append("response_tokens")
    return flags(own, *what, "steps", "batch", "learning_rate", "warmup_steps", "held_out")


def prompt_flags(config: Mapping[str, Any], arm: str) -> list[str]:
    """Command-line words for an arm's training prompts: an offline mixture, or data sets.

    `--answers` is given only if it is not the default, so that prompts made without the flag stay valid.
    """
    train = arms(config)[arm]
    if train["sources"] is None:
        chosen = ["answers"] if train["answers"] != "model" else []
        return flags(train, "samples", "lengths", "response_tokens", "mixture", *chosen)
    sources = [json.dumps({k: v for k, v in source.items() if v is not None}) for source in train["sources"]]
    return flags(train | {"sources": sources}, "sources", "max_tokens", "response_tokens")


def ruler_sources(task: str) -> list[str]:
    """The config key and `lkv data ruler` flag of the text that a RULER task reads, if it reads one."""
    return [SOURCES[kind] for kind in [ruler.TASKS[task].haystack] if kind in SOURCES]


def ruler_files(config: Mapping[str, Any], task: str) -> list[str]:
    """The local files that a RULER task reads; neither `pydoc` nor hub data sets."""
    if config["ready"] is not None:
        return []
    return [file for key in ruler_sources(task) if (file := local(config[key]))]


def ruler_flags(config: Mapping[str, Any], task: str) -> list[str]:
    """Command-line words that say what a RULER task is made of."""
    sources = ["ready"] if config["ready"] is not None else ruler_sources(task)
    return flags(config, "samples", "max_new_tokens", *sources)


def local(source: str) -> str:
    """The path of a text source without its checksum; empty if it is no local file."""
    return "" if source == "pydoc" or source.startswith("hub:") else source.partition("#")[0]


def shell_prefix(cpus: int) -> str:
    """Bash in front of every job: stop at errors, and use no more threads than there are CPUs."""
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
