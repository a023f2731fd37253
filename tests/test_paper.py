"""The paper's study end to end, cut down: two tiny models, one task of each benchmark, a local judge."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from test_longproc import TEMPLATE, item
from test_mtbench import QUESTIONS, Endpoint, said
from test_workflow import ALWAYS, ROOT, planned, snakemake, working_copy

from lkv.files.json_files import write_jsonl
from lkv.model.random_weights import tiny_model, tiny_tokenizer
from lkv.results.csv_files import read_csv

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

FIXTURES = ROOT / "tests/fixtures"
CONFIG = "config/cut.yaml"
RATING = 7
METHODS = ["streamingllm", "snapkv", "pyramidkv", "laq", "speckv", "lookaheadkv", "oracle"]
BENCHMARKS = {
    "ruler": "niah_single_1",
    "longbench": "samsum",
    "longproc": "html_to_tsv_0.5k",
    "mtbench": "mtbench",
}


@pytest.fixture(scope="module")
def judge() -> Iterator[Endpoint]:
    endpoint = Endpoint(lambda number, body: said(f"A fair answer. Rating: [[{RATING}]]"))
    yield endpoint
    endpoint.close()


def local_models(folder: Path) -> None:
    """One Llama and one Qwen3 as users have them: local folders in the transformers format."""
    for family in ("llama", "qwen3"):
        place = folder / "mine" / family
        tiny_model(
            family, seed=2, layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, context=2048
        ).save_pretrained(place)
        tiny_tokenizer().save_pretrained(place)
        spec = {
            "name": f"cut-{family}",
            "licence": "CC0-1.0",
            "max_prompt": 700,
            "learning_rate": 0.001,
            "source": {"kind": "local", "path": f"mine/{family}"},
        }
        (folder / f"config/models/cut-{family}.yaml").write_text(yaml.safe_dump(spec))


def sources(folder: Path) -> None:
    """The files that the paper's config names, made up."""
    shutil.copytree(FIXTURES / "longbench", folder / "sources/longbench")
    write_jsonl(folder / "sources/mt_bench/question.jsonl", QUESTIONS[:2])
    pages = folder / "sources/LongProc/data/html_to_tsv"
    (pages / "webpage").mkdir(parents=True)
    (pages / "html_to_tsv_0.5k.json").write_text(json.dumps([item("a")]))
    (pages / "webpage/a.html").write_text("<html><td>Oak</td><td>20 m</td></html>")
    (pages / "prompts.yaml").write_text("USER_PROMPT: |-\n  " + TEMPLATE.replace("\n", "\n  "))


def cut(url: str) -> dict[str, Any]:
    """config/paper.yaml with every stage in it and next to nothing of each."""
    config = yaml.safe_load((ROOT / "config/paper.yaml").read_text())
    config |= {
        "study": "cut",
        "models": ["cut-llama", "cut-qwen3"],
        "device": "cpu",
        "dtype": "float32",
        "methods": ["full", *METHODS],
        "budgets": [48],
        "speckv": {"drafts": {"cut-llama": "cut-qwen3"}},
    }
    config["ruler"] |= {
        "tasks": [BENCHMARKS["ruler"]], "lengths": [1024], "samples": 2, "budgets": [64], "max_new_tokens": 8,
        "haystack": "pydoc", "squad": None, "hotpotqa": None,
    }  # fmt: skip
    config["longbench"] = {
        "tasks": [BENCHMARKS["longbench"]], "source": "folder:sources/longbench", "max_new_tokens": 8,
    }  # fmt: skip
    config["longproc"] |= {
        "tasks": [BENCHMARKS["longproc"]], "samples": 1, "max_new_tokens": 8, "budgets": None,
    }  # fmt: skip
    config["mtbench"] |= {"samples": 2, "max_new_tokens": 8, "budgets": None, "references": None}
    config["mtbench"]["judge"] |= {"url": url, "prompts": None, "key_variable": "none"}
    mixture = f"file:{FIXTURES}/mixture"
    config["train"] |= {
        "sources": [
            {"name": "stack", "schema": "text", "data": f"{mixture}/stack.json", "count": 3},
            {"name": "tulu3", "schema": "messages", "data": f"{mixture}/tulu.jsonl", "count": 3},
        ],
        "max_tokens": 1024, "response_tokens": 6, "steps": 3, "batch": 2, "warmup_steps": 1, "held_out": 2,
    }  # fmt: skip
    config["latency"] |= {"lengths": [256], "budgets": [64], "repeats": 2, "warmups": 0}
    return dict(config)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, judge: Endpoint) -> Path:
    folder = working_copy(tmp_path_factory.mktemp("paper"))
    local_models(folder)
    sources(folder)
    (folder / CONFIG).write_text(yaml.safe_dump(cut(judge.url)))
    run = snakemake(folder, *ALWAYS, "--configfile", CONFIG, "--", "all")
    assert run.returncode == 0, run.stdout
    return folder


def test_every_benchmark_is_scored_under_every_method_and_on_every_model(finished: Path) -> None:
    accuracy = pd.read_csv(finished / "results/cut/accuracy.csv")
    tasks = accuracy[accuracy["task"] != "average"]
    for model in ("cut-llama", "cut-qwen3"):
        # SpecKV runs where it has a draft.
        methods = {"full", *METHODS} - ({"speckv"} if model == "cut-qwen3" else set())
        for benchmark, task in BENCHMARKS.items():
            rows = tasks[(tasks["model"] == model) & (tasks["benchmark"] == benchmark)]
            assert set(rows["task"]) == {task}
            assert set(rows["method"]) == methods, (model, benchmark)
            assert rows["mean"].between(0, 100).all()
            assert len(rows) == len(methods)


def test_rows_name_their_protocol_and_too_few_samples_are_marked(finished: Path) -> None:
    accuracy = pd.read_csv(finished / "results/cut/accuracy.csv")
    found = accuracy.groupby("benchmark")["protocol"].unique().map(list).to_dict()
    assert found["ruler"] == ["official new_tokens<=8"]
    assert found["longbench"] == ["official max_prompt=700 new_tokens<=8"]
    assert all("new_tokens<=8" in label for label in found["mtbench"])
    samsum = accuracy[(accuracy["benchmark"] == "longbench") & (accuracy["task"] == "samsum")]
    records = sum(1 for _ in (FIXTURES / "longbench/samsum.jsonl").open())
    assert set(zip(samsum["n"], samsum["n_planned"], strict=True)) == {(records, 200)}
    table = (finished / "reports/table1.md").read_text().replace("\\", "")
    assert "fewer usable samples than planned" in table
    assert "official max_prompt=700 new_tokens<=8" in table


def test_the_judge_rated_every_answer_once_and_its_rating_is_the_score(
    finished: Path, judge: Endpoint
) -> None:
    samples = pd.read_csv(finished / "results/cut/samples/cut-llama/mtbench@0.csv")
    assert set(samples["score"]) == {10 * RATING}
    assert len(samples) == 2 * (1 + len(METHODS))
    asked = [json.dumps(body["messages"]) for body in judge.asked]
    assert len(asked) == len(set(asked))


def test_a_second_run_does_nothing(finished: Path, judge: Endpoint) -> None:
    asked = len(judge.asked)
    run = snakemake(finished, *ALWAYS, "--configfile", CONFIG, "--", "all")
    assert "Nothing to be done" in run.stdout
    assert len(judge.asked) == asked


def test_without_its_judge_every_answer_is_kept_and_the_reason_is_one_line(
    finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "unjudged"
    shutil.copytree(finished, folder)
    config = cut("http://127.0.0.1:9/v1")
    (folder / CONFIG).write_text(yaml.safe_dump(config))
    shutil.rmtree(folder / "results/cut/judgements")
    for path in (folder / "results/cut/journal").glob("*/judge@0.jsonl"):
        path.unlink()
    target = "results/cut/samples/cut-llama/mtbench@0.csv"
    answers = folder / "results/cut/answers/cut-llama/mtbench.jsonl"
    before = answers.read_bytes()
    plan = snakemake(folder, "-n", *ALWAYS, "--configfile", CONFIG, "--", target)
    assert planned(plan.stdout) == {"judge": 1}
    run = snakemake(folder, *ALWAYS, "--configfile", CONFIG, "--", target)
    assert run.returncode != 0
    said = [line for line in run.stdout.splitlines() if line.startswith("lkv: error:")]
    assert len(said) == 1 and "http://127.0.0.1:9/v1" in said[0]
    assert answers.read_bytes() == before


def test_the_studys_config_says_what_the_models_were_trained_on(finished: Path) -> None:
    provenance = json.loads((finished / "results/cut/provenance.json").read_text())
    for model in ("cut-llama", "cut-qwen3"):
        assert "self-answered prompts (stack, tulu3)" in provenance["adapters"][f"{model}/main"]["trained_on"]
    latency = read_csv(finished / "results/cut/latency.csv", ["model", "method", "phase", "median_ms"])
    assert set(latency["model"]) == {"cut-llama", "cut-qwen3"}
    assert "speckv" in set(latency.loc[latency["model"] == "cut-llama", "method"])
