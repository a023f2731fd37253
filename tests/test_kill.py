"""Promises of a stage that is killed: whenever it is, the next run ends in the bytes of an undisturbed one,
and no temporary file is left. SIGTERM and Ctrl-C clean up by themselves, in one line."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import forked
import pytest
import torch

from lkv.data.frozen import freeze
from lkv.files.atomic import SUFFIX
from lkv.files.json_files import write_json, write_jsonl
from lkv.lookahead.adapter import LookaheadKV
from lkv.model.fetch import obtain
from lkv.model.load import load
from lkv.results.columns import RECALL_COLUMNS, SAMPLE_COLUMNS
from lkv.results.csv_files import write_csv

ROOT = Path(__file__).parents[1]
SIZES = {"kind": "random", "family": "llama", "layers": 2, "context": 1200, "seed": 1}
COMPARED = "--methods full snapkv --budgets 32 --study s --device cpu"
# Each stage's call; {w} is the world below, {o} the folder of the outputs.
STAGES = {
    "model": "model --spec {w}/big.json --out {o}/models/big",
    "data_train": "data train --model {w}/tiny --samples 4 --lengths 256 --mixture table=1 "
    "--response-tokens 8 --out {o}/train.jsonl --device cpu",
    "data_ruler": "data ruler --model {w}/tiny --task niah_single_1 --length 1000 --samples 8 "
    "--haystack noise --out {o}/niah.jsonl",
    "train": "train --model {w}/tiny --data {w}/train.jsonl --steps 30 --batch 2 --held-out 2 "
    "--out {o}/adapter --csv {o}/training.csv --device cpu",
    "evaluate": f"evaluate --model {{w}}/tiny --data {{w}}/ruler.jsonl {COMPARED} "
    "--journal {o}/j.jsonl --out {o}/samples.csv",
    "inspect": f"inspect --model {{w}}/tiny --data {{w}}/ruler.jsonl {COMPARED} "
    "--recall {o}/recall.csv --kept {o}/kept.csv",
    "mtbench": f"mtbench --model {{w}}/tiny --questions {{w}}/questions.jsonl {COMPARED} "
    "--max-new-tokens 16 --journal {o}/j.jsonl --out {o}/answers.jsonl",
    "latency": f"latency --model {{w}}/tiny {COMPARED} --lengths 64 96 --repeats 1 --warmups 0 "
    "--out {o}/latency.csv",
    "summarise": "summarise --parts {w}/samples.csv --out {o}/accuracy.csv --paired {o}/paired.csv",
    "share": "share --adapter {w}/adapter --licence MIT --out {o}/shared",
    "gather": "gather recall --parts {w}/recall.csv --out {o}/recall.csv",
    "table": "table --results results/demo-cpu --out {o}/table1",
    "plot": "plot training --results results/demo-cpu --out {o}/training",
}
# What tells the time, or in what order finished samples came, is not the same in two runs.
TIMED = {"training.csv", "latency.csv", "j.jsonl", ".training.csv.sha256", ".latency.csv.sha256"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the stages read."""
    root = tmp_path_factory.mktemp("world")
    write_json(root / "big.json", {"name": "big", "licence": "none", "source": SIZES | {"hidden": 256}})
    obtain({"name": "tiny", "licence": "none", "source": SIZES}, root / "tiny")
    adapter = LookaheadKV.create(load(root / "tiny", torch.device("cpu"), "float32").model, tokens=8)
    facts = dict.fromkeys(("lora", "loss", "trained_on", "device", "commit", "model_fingerprint"), "all")
    measured = dict.fromkeys(("held_out_kl_before", "held_out_kl_after", "held_out_recall"), 0.5)
    schedule = {"batch": 1, "learning_rate": 0.1, "warmup_steps": 1, "held_out": 1}
    adapter.save_pretrained(
        root / "adapter", steps=1, schedule=schedule, data_sha256="0", **(facts | measured)
    )
    record = {"benchmark": "ruler", "task": "niah_single_1", "length": 256, "planned": 3} | {
        "haystack": "noise", "protocol": "official", "question_aware": True, "template": True,
        "input": "Rain fell on the harbour. " * 9, "question_at": 0, "answer_prefix": "It is",
        "outputs": ["x"], "classes": [], "metric": "all", "max_new_tokens": 16, "stops": [],
        "min_new_tokens": 0, "prompt_tokens": 240,
    }  # fmt: skip
    freeze(root / "ruler.jsonl", [record | {"sample": sample} for sample in range(3)])
    prompt = {"kind": "log", "length": 64, "ids": list(range(64)), "documents": [], "response": [1, 2]}
    freeze(root / "train.jsonl", [prompt | {"id": i} for i in range(6)])
    question = {"category": "writing", "turns": ["Write of rain. " * 5, "Shorter."]}
    write_jsonl(root / "questions.jsonl", [question | {"question_id": i} for i in range(3)])
    sample = dict.fromkeys(SAMPLE_COLUMNS, 1) | {"study": "s", "model": "m", "benchmark": "ruler"} | {
        "task": "vt", "protocol": "official", "haystack": "noise", "status": "ok", "planned": 9, "length": 64,
    }  # fmt: skip
    cells = [("full", 0), ("snapkv", 8), ("lookaheadkv", 8)]
    rows = [sample | {"sample": i, "method": m, "budget": b} for i in range(9) for m, b in cells]
    write_csv(root / "samples.csv", rows, SAMPLE_COLUMNS)
    write_csv(root / "recall.csv", [dict.fromkeys(RECALL_COLUMNS, 1)] * 5000, RECALL_COLUMNS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        patch.chdir(ROOT)
        forked.start(["--version"], root / "said").join()  # what is forked from has imported everything now
        yield root


def start(stage: str, world: Path, out: Path, said: Path) -> ForkServerProcess:
    return forked.start([word.format(w=world, o=out) for word in STAGES[stage].split()], said)


def ended(process: ForkServerProcess) -> int:
    """The exit code, or -n of a process that signal n ended."""
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def killed(stage: str, world: Path, out: Path, said: Path, after: float, number: int) -> int:
    process = start(stage, world, out, said)
    time.sleep(after)
    with suppress(ProcessLookupError):  # it had ended
        os.kill(process.pid or 0, number)
    return ended(process)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def temporaries(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.name.endswith(SUFFIX)}


def figures(folder: Path) -> dict[str, bytes]:
    """Every file by name, with its bytes where they tell no time."""
    return {name: b"" if name in TIMED else content for name, content in contents(folder).items()}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_was_killed_at_random_times_ends_in_the_same_bytes(
    stage: str, world: Path, tmp_path: Path
) -> None:
    said, out, draw = tmp_path / "said", tmp_path / "out", random.Random(stage)
    clock = time.perf_counter()
    assert ended(start(stage, world, out, said)) == 0, said.read_text()
    seconds, whole = time.perf_counter() - clock, figures(out)
    shutil.rmtree(out)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
        left = temporaries(out)  # of the kill before; only ever less
        code = killed(stage, world, out, said, draw.uniform(0, 0.9) * seconds, number)
        if number == signal.SIGTERM and code != 0:
            assert code in (128 + number, -number), said.read_text()  # -15: before the stage had begun
            assert "Traceback" not in said.read_text()
            assert temporaries(out) <= left
    assert ended(start(stage, world, out, said)) == 0, said.read_text()
    assert figures(out) == whole
    assert not temporaries(out)


def test_sigterm_is_one_line_and_exit_code_143(world: Path, tmp_path: Path) -> None:
    long = STAGES["train"].replace("--steps 30", "--steps 9000")
    for number, word in ((signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")):
        said, out = tmp_path / f"{word}.said", tmp_path / word
        process = forked.start(long.format(w=world, o=out).split(), said)
        while process.is_alive() and "tiny on cpu" not in (said.read_text() if said.exists() else ""):
            time.sleep(0.01)
        time.sleep(0.5)  # it is training
        os.kill(process.pid or 0, number)
        assert ended(process) == 128 + number
        line = f"lkv: error: {word}; run the same command again to go on from what is finished"
        assert said.read_text().splitlines()[-1] == line
        assert not temporaries(out)


STOP = """
import os, runpy, sys
class Stop:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Stop())
sys.argv = ["lkv", "summarise", "--parts", "x.csv", "--out", "a.csv", "--paired", "p.csv"]
runpy.run_module("lkv", run_name="__main__")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("module", ["lkv.cli.main", "argparse", "yaml", "pandas"])
def test_a_signal_while_the_program_is_imported_is_one_line(
    module: str, number: signal.Signals, tmp_path: Path
) -> None:
    code = STOP.format(module=module, number=int(number))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 128 + number
    assert re.fullmatch(r"lkv: error: .*; run the same command again .*\n", done.stderr)
    assert os.listdir(tmp_path) == []


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """nohup's promise."""
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    code += (
        "from lkv.cli.signals import *; leave_at_once()\nwith caught(): signal.raise_signal(signal.SIGHUP)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_installed_command_is_the_one_that_looks_after_signals() -> None:
    assert 'lkv = "lkv.__main__:main"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
