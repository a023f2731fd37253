"""Processes that are started together: what one says is heard, and when one ends badly none goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lkv.distributed.launch import LOST, launch, world

ROOT = Path(__file__).resolve().parents[1]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", "import os, signal, sys, time; rank = int(os.environ['RANK']); " + code]


def test_each_process_knows_its_place_and_all_share_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    said = "[os.environ[k] for k in ('RANK', 'WORLD_SIZE', 'OMP_NUM_THREADS')]"
    code = f"open(f'{tmp_path}/{{rank}}', 'w').write(' '.join({said}))"
    assert launch(3, python(code)) == 0
    assert [(tmp_path / str(rank)).read_text() for rank in range(3)] == ["0 3 2", "1 3 2", "2 3 2"]
    assert world() == 1


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_when_one_fails_its_words_and_its_code_are_the_answer_and_the_others_end(
    rank: int, capfd: pytest.CaptureFixture[str]
) -> None:
    failing = "(print('why', file=sys.stderr), sys.exit(7))"
    code = (
        f"{failing} if rank == {rank} else sys.exit({LOST}) if rank == {(rank + 1) % 3} else time.sleep(60)"
    )
    start = time.monotonic()
    assert launch(3, python(code)) == 7
    assert time.monotonic() - start < 30
    assert capfd.readouterr().err == "why\n"


def test_a_process_that_a_signal_ended_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    code = "os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else time.sleep(60)"
    assert launch(2, python(code)) == 128 + signal.SIGKILL
    assert capfd.readouterr().err == "lkv: error: process 1 of 2 was ended by signal 9\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_who_ends_the_launcher_ends_all(number: int, code: int, tmp_path: Path) -> None:
    own = f"open(f'{tmp_path}/{{rank}}', 'w').write(str(os.getpid())); time.sleep(60)"
    start = (
        "import signal, sys; from lkv.distributed.launch import launch; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "  # which background jobs ignore
        f"sys.exit(launch(2, {python(own)!r}))"
    )
    launcher = subprocess.Popen([sys.executable, "-c", start], cwd=ROOT)
    while not all((tmp_path / rank).exists() and (tmp_path / rank).read_text() for rank in "01"):
        time.sleep(0.05)
    launcher.send_signal(number)
    assert launcher.wait(30) == code
    for rank in "01":
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / rank).read_text()), 0)
