"""The whole workflow for real, on a tiny random model: twice, changed, killed while it evaluates."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_claims import BY_ID
from test_workflow import ALWAYS, ROOT, TINY, environment, planned, snakemake, working_copy

from lkv.claims.evidence import read_evidence
from lkv.claims.rules import judged
from lkv.files.json_files import read_json
from lkv.report import kinds
from lkv.study import check as study
from lkv.study import targets

pytestmark = pytest.mark.slow

TASK = "tiny-llama/niah_single_1@1024"
SAMPLES = f"results/tiny/samples/{TASK}.csv"
JOURNAL = f"results/tiny/journal/{TASK}.jsonl"
INSPECT = ("inspect", "gather_recall", "gather_kept")
SUMMARY = ("results/tiny/accuracy.csv", "results/tiny/paired.csv")
CALL = (*ALWAYS, "--configfile", TINY, "--")
SLOW_DISK = """
import os, time
real = os.fsync
def fsync(file):
    real(file)
    if os.readlink(f"/proc/self/fd/{file}").endswith(".jsonl"):
        time.sleep(5)
os.fsync = fsync
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `snakemake all` has run once."""
    folder = working_copy(tmp_path_factory.mktemp("finished"))
    run = snakemake(folder, *CALL, "all")
    assert run.returncode == 0, run.stdout
    return folder


def test_every_report_is_made(finished: Path) -> None:
    made = targets.targets(study.read_config(ROOT / TINY, ROOT))
    assert [name for name in made if not (finished / name).stat().st_size] == []
    assert yaml.safe_load((finished / "results/tiny/config.yaml").read_text())["seed"] == 42


def test_second_run_does_nothing(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("results/**/*")}
    run = snakemake(finished, *CALL, "all")
    assert run.returncode == 0
    assert "Nothing to be done" in run.stdout
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("results/**/*")} == before


def test_the_finished_study_is_one_page_and_nothing_runs_again_for_it(finished: Path) -> None:
    plan = snakemake(finished, "-n", *CALL, "reports/report.html")
    assert planned(plan.stdout) == {"html": 1}
    run = snakemake(finished, *CALL, "reports/report.html")
    assert run.returncode == 0, run.stdout
    page = (finished / "reports/report.html").read_text(encoding="utf-8")
    assert all(f"reports/{kind}.svg" in page for kind in kinds.PLOTS)
    assert '"rule": "evaluate"' in page  # the whole workflow, not the reports' rules alone


def _more_budgets(config: dict[str, Any]) -> None:
    config["budgets"].append(160)


def _more_repeats(config: dict[str, Any]) -> None:
    config["latency"]["repeats"] += 1


def _more_steps(config: dict[str, Any]) -> None:
    config["train"]["steps"] += 1


STEPS = {
    "train", "evaluate", "summarise", "latency", "gather_training", "gather_latency", "gather_arms", "ablate",
    "ablation",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "again", "plots"),
    [
        (_more_budgets, {"evaluate", "summarise", *INSPECT}, 6),
        (_more_repeats, {"latency", "gather_latency"}, 5),
        (_more_steps, {*STEPS, *INSPECT}, 8),
    ],
)
def test_a_changed_value_runs_again_only_what_depends_on_it(
    finished: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], again: set[str], plots: int
) -> None:
    config = yaml.safe_load((finished / TINY).read_text())
    change(config)
    (tmp_path / "changed.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    run = snakemake(finished, "-n", *ALWAYS, "--configfile", str(tmp_path / "changed.yaml"), "--", "all")
    jobs = planned(run.stdout)
    assert jobs.keys() == again | {"study_config", "provenance", "table", "plot"}
    assert jobs["plot"] == plots


def test_modules_of_one_study_serve_another_without_training(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "given"
    shutil.copytree(finished, folder)
    shutil.copytree(folder / "results/tiny/adapters/tiny-llama/main", folder / "adapters/tiny")
    config = yaml.safe_load((folder / TINY).read_text())
    del config["train"], config["ablation"]
    config |= {"study": "given", "adapters": {"tiny-llama": "adapters/tiny"}}
    (folder / "config/given.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    call = (*ALWAYS, "--configfile", "config/given.yaml", "--")
    every_job = planned(snakemake(folder, "-n", *call, "all").stdout)
    assert every_job["evaluate"] == 2
    assert not {"train", "data_train", "gather_training"} & every_job.keys()
    given = [f"results/given/{name}" for name in ("accuracy.csv", "paired.csv", "provenance.json")]
    run = snakemake(folder, *call, *given)
    assert run.returncode == 0, run.stdout
    one, other = (read_json(folder / f"results/{name}/provenance.json") for name in ("tiny", "given"))
    assert other["adapters"] == {"tiny-llama/main": one["adapters"]["tiny-llama/main"]}
    accuracy = [(folder / f"results/{name}/accuracy.csv").read_text() for name in ("tiny", "given")]
    assert accuracy[1].replace("given,", "tiny,") == accuracy[0]
    assert judged(BY_ID["P17"], read_evidence(folder / "results/given")).figure.startswith("tiny-llama: ")


def test_evaluation_killed_in_the_middle_goes_on_to_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    shutil.copytree(finished, folder)
    for name in (SAMPLES, JOURNAL, *SUMMARY):
        (folder / name).unlink()

    _run_until_journalled_then_kill(folder)
    kept = (folder / JOURNAL).read_bytes()
    whole = (finished / JOURNAL).read_bytes()
    assert 0 < kept.count(b"\n") < whole.count(b"\n")
    assert not (folder / SAMPLES).exists()

    # The killed snakemake could not take its lock away.
    assert snakemake(folder, "--unlock").returncode == 0
    run = snakemake(folder, *CALL, *SUMMARY)
    assert run.returncode == 0, run.stdout
    assert (folder / JOURNAL).read_bytes().startswith(kept)
    for name in (SAMPLES, *SUMMARY):
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), name


def _run_until_journalled_then_kill(folder: Path, seconds: float = 120) -> None:
    """SIGKILL to snakemake and its job as soon as the journal has a line; the disk is so slow that it has no
    second group by then."""
    slow = folder / "slow"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(SLOW_DISK)
    run = subprocess.Popen(
        [sys.executable, "-m", "snakemake", *CALL, SAMPLES],
        cwd=folder,
        env=environment() | {"PYTHONPATH": f"{slow}{os.pathsep}{ROOT}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + seconds
    journal = folder / JOURNAL
    while not (journal.exists() and journal.stat().st_size):
        assert run.poll() is None, "the evaluation ended before its journal had a line"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
