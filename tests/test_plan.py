"""Promises of `lkv plan`: it counts what will run, and its hours follow from its stated rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lkv.bench.longbench import tasks as longbench
from lkv.cli.main import main
from lkv.model.shape import Shape
from lkv.results.columns import LATENCY_COLUMNS
from lkv.results.csv_files import read_csv
from lkv.study import check as study
from lkv.study import cost, plan, schema

ROOT = Path(__file__).parents[1]


@pytest.fixture
def paper() -> dict[str, Any]:
    return study.read_config(ROOT / "config/paper.yaml", ROOT)


def test_the_papers_study_is_counted_model_by_model_and_stage_by_stage(paper: dict[str, Any]) -> None:
    stages = plan.plan(paper, ROOT)
    assert [stage.model for stage in stages] == [model for model in paper["models"] for _ in range(6)]
    of_one = {stage.name: stage for stage in stages if stage.model == "llama-3.1-8b-instruct"}
    assert {name: stage.prompts for name, stage in of_one.items()} == {
        "responses": 86_000,
        "train": 7_600 * 32,
        "ruler": 13 * 4 * 500,
        "longbench": 3_750,
        "longproc": 100 + 189,
        "mtbench": 80,
    }
    assert of_one["ruler"].jobs == 52 and of_one["longbench"].jobs == 16
    # At one budget: seven evictors where SpecKV has a draft, six elsewhere, and the full cache.
    ruler_tokens = 4 * 500 * (8 * 128 + 30 + 120 + 50 + 2 * 32)
    assert of_one["ruler"].written == ruler_tokens * 8
    small = next(s for s in stages if s.model == "llama-3.2-1b-instruct" and s.name == "ruler")
    assert small.written == ruler_tokens * 7


def test_prefill_hours_are_arithmetic_over_the_stated_rate(paper: dict[str, Any]) -> None:
    shape = Shape(**schema.model_spec("llama-3.1-8b-instruct", ROOT)["shape"])
    seconds = cost.prefill_seconds(shape, 32_768, 1)
    assert seconds == pytest.approx((2 * 6.98e9 * 32_768 + 2 * 32_768**2 * 32 * 4096) / 6.2e14, rel=1e-3)
    assert seconds == pytest.approx(1.206, rel=0.05)  # measured
    assert cost.prefill_seconds(shape, 8_192, 1) == pytest.approx(0.2104, rel=0.05)


def test_decode_steps_are_those_that_were_measured() -> None:
    frame = read_csv(ROOT / "results/latency-h100/latency.csv", LATENCY_COLUMNS)
    frame = frame[frame["phase"].isin(["decode_token", "decode_batch"]) & frame["budget"].isin([0, 128])]
    ratios = []
    for row in frame.to_dict("records"):
        shape = Shape(**schema.model_spec(row["model"], ROOT)["shape"])
        seconds = cost.step_s(shape, int(row["batch"]), row["budget"] or row["length"])
        ratios.append(1e3 * seconds / row["median_ms"])
    assert len(ratios) > 100
    assert min(ratios) > 0.67
    assert max(ratios) < 1.5


def test_a_model_whose_shape_is_unknown_is_counted_without_hours() -> None:
    config = study.read_config(ROOT / "config/tiny.yaml", ROOT)
    assert {stage.hours for stage in plan.plan(config, ROOT)} == {None}
    text = "\n".join(plan.lines(config, ROOT))
    assert "0.0 GPU-hours and 5 stages of unknown shape" in text


def test_arms_are_counted_once_a_training_and_on_their_part_of_the_study() -> None:
    config = study.read_config(ROOT / "config/tiny.yaml", ROOT)
    stages = {stage.name: stage for stage in plan.plan(config, ROOT)}
    assert list(stages) == ["responses", "train", "train, tokens", "ruler", "ablation"]
    assert (stages["ablation"].jobs, stages["ablation"].prompts) == (1, 2)
    assert stages["ablation"].written == 2 * 16 * (1 + 3)  # the full cache and three arms, 16 tokens each


def test_every_longbench_task_has_a_mean_length() -> None:
    assert list(cost.WORDS) and set(cost.WORDS) == set(longbench.TASKS)


def test_the_verb_prints_jobs_prompts_tokens_hours_disk_and_the_judges_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["plan", "--config", "config/paper.yaml"]) == 0
    out = capsys.readouterr().out
    for word in (
        "jobs",
        "prompts",
        "tokens read",
        "GPU-hours",
        "disk",
        "TFLOP/s",
        "ratings asked of the judge",
    ):
        assert word in out
    assert main(["plan", "--config", "config/nobody.yaml"]) == 2
    assert "no such config: config/nobody.yaml" in capsys.readouterr().err


def test_a_wrong_config_is_named_before_anything_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    config = yaml.safe_load(Path("config/paper.yaml").read_text())
    config["longbench"]["tasks"] = ["qaspr"]
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    assert main(["plan", "--config", str(tmp_path / "x.yaml")]) == 2
    assert "'qaspr' (did you mean 'qasper'?)" in capsys.readouterr().err
