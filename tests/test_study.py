"""Promises of the studies that are published in results/: figures follow from the samples beside them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml

from lkv.files.json_files import read_json
from lkv.lookahead.adapter import LookaheadKV
from lkv.results.columns import ACCURACY_COLUMNS, PAIRED_COLUMNS, SAMPLE_COLUMNS
from lkv.results.csv_files import read_csv
from lkv.results.summarise import AVERAGE, write_ablation
from lkv.study.arms import reference_arm
from lkv.study.jobs import ablated_evaluations

ROOT = Path(__file__).parents[1]
STUDIES = sorted({path.parents[2] for path in ROOT.glob("results/*/samples/*/*.csv.gz")})
CELL = ["model", "benchmark", "task", "length", "protocol", "method", "budget"]


def test_the_main_study_and_those_beside_it_are_published() -> None:
    assert len(STUDIES) >= 3


@pytest.fixture(scope="module", params=STUDIES, ids=lambda study: study.name)
def study(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def samples(study: Path) -> pd.DataFrame:
    return pd.concat(read_csv(path, SAMPLE_COLUMNS) for path in study.glob("samples/*/*.csv.gz"))


def test_published_means_are_those_of_the_published_samples(study: Path, samples: pd.DataFrame) -> None:
    accuracy = read_csv(study / "accuracy.csv", ACCURACY_COLUMNS).set_index(CELL)
    means = samples[samples["status"] == "ok"].groupby(CELL)["score"].agg(["mean", "count"])
    assert len(means) > 100
    for cell, row in means.iterrows():
        assert accuracy.loc[cell, "mean"] == pytest.approx(row["mean"], rel=1e-5, abs=1e-5)
        assert accuracy.loc[cell, "n"] == row["count"]
    of_tasks = [column for column in CELL if column != "task"]
    for cell, mean in means["mean"].groupby(of_tasks).mean().items():
        row = accuracy.xs(AVERAGE, level="task").loc[cell]
        assert float(row["mean"]) == pytest.approx(mean, rel=1e-5)


def test_published_averages_of_differences_are_means_over_tasks(study: Path) -> None:
    paired = read_csv(study / "paired.csv", PAIRED_COLUMNS)
    keys = ["benchmark", "length", "protocol", "budget", "metric", "method"]
    tasks, averages = (
        rows.set_index(keys)["diff"]
        for rows in (paired[paired["task"] != AVERAGE], paired[paired["task"] == AVERAGE])
    )
    assert len(averages) > 10
    for cell, diff in averages.items():
        assert diff == pytest.approx(tasks.loc[[cell]].mean(), rel=1e-4, abs=1e-4)


def test_published_differences_are_paired_by_sample(study: Path, samples: pd.DataFrame) -> None:
    paired = read_csv(study / "paired.csv", PAIRED_COLUMNS)
    paired = paired[
        (paired["metric"] == "score") & (paired["task"] != AVERAGE) & (paired["method"] != "full")
    ]
    scores = samples.set_index([*CELL, "sample"])["score"].unstack("method")
    for method, rows in paired.groupby("method"):
        difference = (scores["lookaheadkv"] - scores[method]).groupby([*CELL[:-2], "budget"]).mean()
        for row in rows.to_dict("records"):
            cell = tuple(row[column] for column in CELL if column != "method")
            assert row["diff"] == pytest.approx(difference[cell], rel=1e-4, abs=1e-4)
            assert row["ci_low"] - 1e-6 <= row["diff"] <= row["ci_high"] + 1e-6


@pytest.mark.parametrize("name", ["arms-cpu", pytest.param("smollm2-h100", marks=pytest.mark.door)])
def test_a_published_ablation_is_that_of_its_samples(name: str, tmp_path: Path) -> None:
    folder = ROOT / "results" / name
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    samples = sorted(folder.glob("ablation/smollm2-135m-instruct/*.csv.gz"))
    assert {path.name.removesuffix(".csv.gz") for path in samples} == {
        f"{job.task}@{job.length}" for job in ablated_evaluations(config)
    }
    write_ablation(samples, tmp_path / "ablation.csv", reference_arm(config), config["seed"])
    assert (tmp_path / "ablation.csv").read_bytes() == (folder / "ablation.csv").read_bytes()


def test_every_method_answered_the_same_samples(samples: pd.DataFrame) -> None:
    evicted = samples[samples["budget"] > 0]
    of_method = evicted.groupby(CELL)["sample"].agg(frozenset)
    assert (of_method.groupby([*CELL[:-2], "budget"]).nunique() == 1).all()


def test_the_published_modules_carry_the_facts_of_those_that_were_evaluated() -> None:
    """By the facts of their cards: the weights were rounded to bfloat16, in which the study ran."""
    facts = read_json(ROOT / "results/smollm2-h100/provenance.json")["adapters"]["smollm2-135m-instruct/main"]
    card = LookaheadKV.from_pretrained(ROOT / "adapters/smollm2-135m-instruct").card
    same = ("trained_on", "steps", "held_out_kl_after", "held_out_recall", "data_sha256", "parameters")
    assert {key: card[key] for key in same} == {key: facts[key] for key in same}


def test_what_is_published_is_small() -> None:
    """Under 10 MB: it is part of every clone."""
    study = ROOT / "results/smollm2-h100"
    files = [*study.glob("*.*"), *study.glob("samples/*/*.gz"), *study.glob("ablation/*/*.gz")]
    assert len(files) > 70
    assert sum(path.stat().st_size for path in files) < 10_000_000
