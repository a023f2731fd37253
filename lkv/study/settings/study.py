"""Every key of a study's config, declared once: kind, default, bounds and meaning.

Here and in the files of this folder. From them come the JSON schema that checks a config (json_schema.py),
the table of keys in config/README.md, and flags of the command line with type, default and help
(lkv/cli/flags.py).
After a change: `python -m lkv.study.settings.generate`.
"""

# ruff: noqa: RUF009 (each call makes a dataclass field of its own)

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lkv.study.settings.benchmarks import LongBench, LongProc, MTBench, Protocol, Ruler
from lkv.study.settings.declare import (
    LARGEST_SEED,
    LOWER_CASE,
    LOWER_CASE_WORDS,
    NAME,
    first_samples,
    key,
    own_budgets,
)
from lkv.study.settings.training import Ablation, Choosing, Drafting, Train


@dataclass(kw_only=True, eq=False, repr=False)
class Inspect:
    """on what recall by layer and kept tokens are recorded"""

    samples: int = first_samples(8)
    lengths: list[int] | None = key(
        "the study's lengths that are inspected; 0 for prompts with lengths of their own",
        default=None,
        null="all",
        least=0,
        distinct=True,
        some=True,
    )
    budgets: list[int] | None = own_budgets()


@dataclass(kw_only=True, eq=False, repr=False)
class Latency:
    """what is timed"""

    lengths: list[int] = key("prompt lengths in tokens", least=1, distinct=True, some=True)
    budgets: list[int] = key("entries kept per layer and KV head", least=1, distinct=True, some=True)
    methods: list[str] = key(
        "methods that are timed, full among them",
        items="methods",
        item="a method's name",
        pattern=NAME,
        distinct=True,
        some=True,
    )
    repeats: int | list[int] = key(
        "timed runs; of a list, one number per length", default=10, least=1, few=True, some=True
    )
    warmups: int = key("untimed runs before them", default=2, least=0)
    random: list[str] = key(
        "models timed with random weights of the shape in their file: nothing is fetched or trained for them",
        default=[],
        items="models of the study",
        item="one of the study's models",
        pattern=NAME,
        distinct=True,
    )
    ways: list[Literal["whole", "layerwise"]] = key(
        "when entries are evicted: after the whole prefill (whole), or layer by layer during it (layerwise)",
        default=["whole"],
        items="whole and layerwise",
        item="whole or layerwise",
        distinct=True,
        some=True,
    )
    batches: bool = key("true: decoding with as many sequences as fit is timed too (GPU)", default=False)


@dataclass(kw_only=True, eq=False, repr=False)
class Study:
    """One study, config/NAME.yaml. lkv/study/check.py checks names of methods, tasks, prompts and models."""

    study: str = key(
        f"the study's name, {LOWER_CASE_WORDS}: results/NAME, data/NAME, logs/NAME", pattern=LOWER_CASE
    )
    seed: int = key("seed of data, training and statistics", default=42, least=0, most=LARGEST_SEED)
    models: list[str] = key(
        "models, each with a file config/models/NAME.yaml; lkv ls models lists them",
        items="names",
        item="a name of a file config/models/NAME.yaml: letters, digits, '.', '_', '+', '-'",
        pattern=NAME,
        distinct=True,
        some=True,
    )
    device: Literal["auto", "cpu", "cuda"] = key("auto takes CUDA where there is a GPU", default="auto")
    dtype: Literal["auto", "float32", "bfloat16"] = key(
        "auto takes bfloat16 where the device computes in it", default="auto"
    )
    jobs_per_gpu: int = key(
        "evaluations that share a GPU, for models too small to fill it; snakemake --resources gpu=N then "
        "counts GPUs times this number",
        default=1,
        least=1,
        few=True,
    )
    protocol: Protocol = key(default=Protocol)
    speckv: Drafting = key(default=Drafting)
    lookaheadkv: Choosing = key(default=Choosing)
    methods: list[str] = key(
        "full (the whole cache) and eviction methods, one or more where there is a benchmark; lkv ls methods "
        "lists them",
        default=[],
        items="method names",
        item="a method's name",
        pattern=NAME,
        distinct=True,
    )
    budgets: list[int] = key(
        "entries kept per layer and KV head, window and sinks counted in; needed where there is a benchmark",
        default=[],
        least=1,
        distinct=True,
    )
    ruler: Ruler | None = key(optional=True)
    longbench: LongBench | None = key(optional=True)
    longproc: LongProc | None = key(optional=True)
    mtbench: MTBench | None = key(optional=True)
    adapters: dict[str, str] = key(
        "model: a folder of trained modules (lookahead.json and weights) that are used as they are, in place "
        "of training; not together with ablation",
        default={},
        item="a folder of trained modules, as lkv train writes it",
        pattern=r".",
    )
    train: Train | None = key(default=None, null="nothing is trained")
    ablation: Ablation | None = key(default=None, null="none")
    inspect: Inspect | None = key(default=None, null="nothing is inspected")
    latency: Latency = key()
