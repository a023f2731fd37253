"""Promises of the declared keys: the schema, the README's table, the code's own defaults all say the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from lkv.lookahead.arm import Arm
from lkv.lookahead.method import METHOD
from lkv.study.schema import check
from lkv.study.settings import generate
from lkv.study.settings.declare import MISSING, declared
from lkv.study.settings.json_schema import describe, study_schema
from lkv.study.settings.study import Latency, Study
from lkv.study.settings.training import Choosing, Train

ROOT = Path(__file__).parents[1]
LEAST = {"study": "s", "models": ["m"], "latency": {"lengths": [8], "budgets": [4], "methods": ["full"]}}


def test_the_schema_file_and_the_table_of_keys_are_current() -> None:
    """After a change of a key: python -m lkv.study.settings.generate"""
    text = (ROOT / generate.SCHEMA).read_text(encoding="utf-8")
    assert text == generate.schema_text()
    assert yaml.safe_load(text) == study_schema()
    readme = (ROOT / generate.README).read_text(encoding="utf-8")
    assert readme == generate.with_table(readme)


def test_the_table_marks_the_required_keys_and_shows_every_default() -> None:
    rows = [line.split(" | ") for line in generate.table().splitlines()[2:]]
    defaults = {row[0].strip("| `"): row[-1].strip("| ") for row in rows}
    assert {name for name, default in defaults.items() if default == "**required**"} == {
        "study", "models", "latency", "latency.lengths", "latency.budgets", "latency.methods", "train.steps",
        "ruler.tasks", "ruler.lengths", "ruler.samples", "longbench.tasks", "longbench.source",
        "longproc.tasks", "longproc.data", "mtbench.questions", "mtbench.judge.url", "mtbench.judge.model",
        "train.sources[].name", "train.sources[].schema", "train.sources[].data", "train.sources[].count",
        "ablation.arms",
    }  # fmt: skip
    assert defaults["seed"] == "`42`" and defaults["latency.ways"] == "`[whole]`"
    assert defaults["train.learning_rate"] == "`null`: learning_rate of the model's file"


def test_a_config_of_required_keys_gets_the_declared_defaults() -> None:
    study = Study(study="s", models=["m"], latency=Latency(lengths=[8], budgets=[4], methods=["full"]))
    of_classes = {key: value for key, value in dataclasses.asdict(study).items() if key in check_least()}
    assert check_least() == of_classes
    absent = {key for key, entry in declared(Study).items() if entry.key.optional}
    assert set(declared(Study)) - set(check_least()) == absent


def check_least() -> dict[str, Any]:
    return check(LEAST, study_schema(), "c.yaml")


def test_defaults_of_the_code_are_the_declared_ones() -> None:
    choosing, train = declared(Choosing), declared(Train)
    assert {name: getattr(METHOD.recipe, name) for name in ("group", "pool", "kernel", "order")} == {
        name: choosing[name].default for name in ("group", "pool", "kernel", "order")
    }
    arm = Arm()
    assert (arm.name, arm.tokens, arm.lora, arm.loss) == tuple(
        train[name].default for name in ("arm", "tokens", "lora", "loss")
    )


def test_every_key_is_explained_and_says_what_null_stands_for() -> None:
    def explained(section: type) -> int:
        count = 0
        for name, entry in declared(section).items():
            assert entry.key.help and "None" not in entry.key.help, name
            assert bool(entry.key.null) == entry.nullable, name
            assert describe(entry)
            assert entry.default is not None or entry.nullable or entry.default is MISSING, name
            count += 1 + sum(explained(kind) for kind in entry.kinds if dataclasses.is_dataclass(kind))  # type: ignore[arg-type]
        return count

    assert explained(Study) > 80
