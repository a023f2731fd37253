"""Checks of a study's trainings: the main one and those of its ablation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lkv.data.prompts import KINDS
from lkv.data.schemas import SCHEMAS as PROMPT_SCHEMAS
from lkv.errors import UserError, one_of
from lkv.lookahead.arm import check_training
from lkv.study.arms import arms, reference_arm
from lkv.study.check_benchmarks import check_part
from lkv.study.commands import NOT_GIVEN
from lkv.study.models import trained


def check_trainings(study: Mapping[str, Any], specs: Mapping[str, Mapping[str, Any]], source: str) -> None:
    """Every arm can be trained, on every model; `specs` are the models' files."""
    train = study["train"]
    if not train:
        if needing := trained(study):
            raise UserError(
                f"{source}, train: missing, and lookaheadkv needs modules for {', '.join(needing)}; add it, "
                "or name folders of trained ones in adapters"
            )
        return
    for name in study["models"]:
        given = name in study["adapters"] or train["learning_rate"]
        if not given and not specs[name]["learning_rate"]:
            raise UserError(
                f"{source}, train.learning_rate: missing, and config/models/{name}.yaml has none; "
                "give a number above 0"
            )
    for name, values in arms(study).items():
        place = f"{source}, train" if name == train["arm"] else f"{source}, ablation.arms.{name}"
        _check_prompts(values, place)
        prompts = values["samples"] or sum(item["count"] for item in values["sources"])
        check_training(
            prompts,
            values["held_out"],
            values["batch"],
            values["steps"],
            values["warmup_steps"],
            places=(f"{place}.samples: ", f"{place}.warmup_steps: "),
        )


def _check_prompts(train: Mapping[str, Any], place: str) -> None:
    """The prompts come from a mixture or from data sets, and all that this needs is given."""
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
        return
    for item in train["sources"]:
        if item["schema"] not in PROMPT_SCHEMAS:
            raise one_of(f"schema in {place}.sources:", item["schema"], PROMPT_SCHEMAS)
    if train["answers"] == "given":
        raise UserError(f"{place}.answers: given, but {NOT_GIVEN}; allowed: model, or a mixture")


def check_ablation(study: Mapping[str, Any], source: str) -> None:
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
        check_part(study, "ablation", key, own[key], source)
