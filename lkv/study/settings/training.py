"""Keys of a study that say how LookaheadKV's modules are trained and used."""

# ruff: noqa: RUF009 (each call makes a dataclass field of its own)

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lkv.lookahead.arm import TOKENS
from lkv.study.settings.declare import (
    LARGEST_SEED,
    LOWER_CASE,
    LOWER_CASE_WORDS,
    NAME,
    first_samples,
    key,
    own_budgets,
)

HUB_OR_FILE = "hub:OWNER/NAME[:CONFIG][@REVISION] or file:PATH"


@dataclass(kw_only=True, eq=False, repr=False)
class Drafting:
    """SpecKV's draft models"""

    drafts: dict[str, str] = key(
        "model: its draft model, or self; a model without one is not run under speckv",
        default={},
        pattern=NAME,
        item="a name of a file config/models/NAME.yaml, or self",
    )


@dataclass(kw_only=True, eq=False, repr=False)
class Choosing:
    """how LookaheadKV's importance becomes a choice (trained modules stay as they are)"""

    group: Literal["mean", "max"] = key(
        "how the importance of a KV head's query heads is combined: mean or max", default="mean"
    )
    pool: Literal["max", "avg", "none"] = key(
        "how importance is pooled along the prompt: max, avg or none", default="max"
    )
    kernel: int = key("entries pooled", default=7, least=1, odd=True, few=True)
    order: Literal["group_pool", "pool_group"] = key(
        "which comes first: combining query heads (group_pool), or pooling (pool_group)", default="group_pool"
    )
    beside: int = key(
        "so many of the prompt's last tokens observe the prompt as well (SnapKV's window), each with the "
        "weight of a learned token",
        default=0,
        least=0,
    )


@dataclass(kw_only=True, eq=False, repr=False)
class Source:
    """one data set"""

    name: str = key(f"a name, {LOWER_CASE_WORDS}", pattern=LOWER_CASE)
    schema: str = key("how its records are read; lkv/data/schemas.py lists the schemas")
    data: str | list[str] = key(
        f"{HUB_OR_FILE}, or a list of them", pattern="^(hub|file):.", item=HUB_OR_FILE, some=True
    )
    split: str | None = key("the split of a hub data set", default=None, null="train")
    count: int = key("prompts taken from it", least=1)
    shots: int | None = key("solved examples in a few-shot prompt", optional=True, least=0)
    licence: str | None = key("the data set's licence", optional=True)


@dataclass(kw_only=True, eq=False, repr=False)
class Train:
    """how LookaheadKV's modules are trained"""

    arm: str = key(f"a name for this training, {LOWER_CASE_WORDS}", default="main", pattern=LOWER_CASE)
    tokens: int = key("lookahead tokens", default=TOKENS, least=1, few=True)
    lora: Literal["all", "qk", "none"] = key(
        "the linear layers that carry LoRA: all, the query and key projections (qk), or none", default="all"
    )
    loss: Literal["kl", "mse"] = key("kl (LookaheadKV's) or mse (Judge Q's)", default="kl")
    samples: int | None = key(
        "prompts of the mixture, the held-out ones counted in",
        default=None,
        null="none; a mixture needs a number",
        least=2,
    )
    lengths: list[int] | None = key(
        "prompt lengths of the mixture in tokens; list a length twice to give it twice as many prompts",
        default=None,
        null="none; a mixture needs them",
        least=1,
        some=True,
    )
    response_tokens: int = key("tokens of the answer that make the training target", default=32, least=1)
    answers: Literal["model", "given"] = key(
        "model: the model answers its training prompts itself; given: the true answer, where a prompt of the "
        "mixture has one",
        default="model",
    )
    gpus: int = key(
        "GPUs that share one training and the answering of its prompts; fewer where there are fewer",
        default=1,
        least=1,
    )
    seed: int | None = key(
        "seed of the modules' initial values and of the order of the prompts; the prompts keep the study's "
        "seed",
        default=None,
        null="the study's seed",
        least=0,
        most=LARGEST_SEED,
    )
    steps: int = key("optimiser steps", least=1)
    batch: int = key("prompts per step", default=8, least=1)
    learning_rate: float | None = key(
        "Adam's rate, reached after the warm-up and followed by a cosine to zero; written with a point (YAML "
        "reads 1e-3 as text: write 0.001 or 1.0e-3)",
        default=None,
        null="learning_rate of the model's file",
        positive=True,
    )
    warmup_steps: int = key("steps of linear warm-up", default=0, least=0)
    held_out: int = key("prompts kept back to measure the KL on", default=8, least=1)
    mixture: dict[str, float] | None = key(
        "kinds of offline training prompts, one or more, each with a weight above 0; lkv/data/prompts.py "
        "lists them",
        default=None,
        null="sources are given instead",
        positive=True,
        item="a weight above 0",
        some=True,
    )
    sources: list[Source] | None = key(
        "data sets, each {name, schema, data, count}, in place of mixture, samples and lengths",
        default=None,
        null="a mixture is given instead",
        items="data sets",
        some=True,
    )
    max_tokens: int = key("longer prompts of the sources are left out", default=16384, least=1)


@dataclass(kw_only=True, eq=False, repr=False)
class Ablation:
    """LookaheadKV trained and used in other ways, compared with train.arm"""

    reference: str | None = key(
        "the arm that the others are compared with; if the main modules train for longer than the arms, add "
        "an arm with main's settings and the arms' steps, and name it here",
        default=None,
        null="train.arm",
        pattern=NAME,
    )
    beside: list[str] = key(
        "arms shown in the table and the plots of scores, next to the methods",
        default=[],
        items="arms",
        item="the name of an arm",
        pattern=NAME,
        distinct=True,
    )
    arms: dict[str, dict[str, object]] = key(
        "arm: the keys of train and lookaheadkv that differ from the study's own, one arm or more; arms that "
        "differ in lookaheadkv alone share trained modules",
        item="keys of train and lookaheadkv with other values, one or more",
        names=LOWER_CASE,
        parts=(Train, Choosing),
        without=("arm", "held_out", "max_tokens"),
        some=True,
    )
    tasks: list[str] | None = key(
        "the study's tasks that the arms are evaluated on",
        default=None,
        null="all",
        items="tasks of the study",
        item="the name of a task of the study",
        pattern=NAME,
        distinct=True,
        some=True,
    )
    lengths: list[int] | None = key(
        "the study's lengths that the arms are evaluated on; 0 for prompts with lengths of their own",
        default=None,
        null="all",
        least=0,
        distinct=True,
        some=True,
    )
    budgets: list[int] | None = own_budgets()
    samples: int | None = first_samples()
