"""Where every file of a study lies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lkv.files.strict_yaml import dump_yaml as dump_yaml

SHIPPED = Path(__file__).resolve().parents[2]  # what ships with the project, beside its Snakefile

SPEC = "config/models/{model}.yaml"

# {study} is filled from the config, the rest are the rules' wildcards.
PATHS = {
    "model": "models/{model}/model.json",
    "train_data": "data/{study}/train/{model}/{arm}.jsonl",
    "train_facts": "data/{study}/train/{model}/{arm}.json",
    "data": "data/{study}/{benchmark}/{model}/{task}@{length}.jsonl",
    "data_facts": "data/{study}/{benchmark}/{model}/{task}@{length}.json",
    "adapter": "results/{study}/adapters/{model}/{arm}/lookahead.json",
    "training_part": "results/{study}/training/{model}/{arm}.csv",
    "journal": "results/{study}/journal/{model}/{task}@{length}.jsonl",
    "samples": "results/{study}/samples/{model}/{task}@{length}.csv",
    "answers": "results/{study}/answers/{model}/mtbench.jsonl",
    "judgements": "results/{study}/judgements/{model}.csv",
    "latency_part": "results/{study}/latency/{model}.csv",
    "recall_part": "results/{study}/inspect/{model}/{task}@{length}.recall.csv",
    "kept_part": "results/{study}/inspect/{model}/{task}@{length}.kept.csv",
    "recall": "results/{study}/recall_by_layer.csv",
    "kept": "results/{study}/kept.csv",
    "ablation_journal": "results/{study}/ablation/{model}/{task}@{length}.jsonl",
    "ablation_samples": "results/{study}/ablation/{model}/{task}@{length}.csv",
    "ablation": "results/{study}/ablation.csv",
    "arms": "results/{study}/arms.csv",
    "accuracy": "results/{study}/accuracy.csv",
    "paired": "results/{study}/paired.csv",
    "training": "results/{study}/training.csv",
    "latency": "results/{study}/latency.csv",
    "config": "results/{study}/config.yaml",
    "provenance": "results/{study}/provenance.json",
}

MODEL_CARD = Path(PATHS["model"]).name  # it stands for a folder with a model
CARD = Path(PATHS["adapter"]).name  # written last, it stands for a folder of trained modules


def paths(config: Mapping[str, Any]) -> SimpleNamespace:
    """PATHS with the study's name filled in; the wildcards stay."""
    return SimpleNamespace(**{key: path.replace("{study}", config["study"]) for key, path in PATHS.items()})
