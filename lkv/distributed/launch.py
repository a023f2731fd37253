"""Several processes of one command that know each other: RANK and WORLD_SIZE, as torchrun sets them, and a
file to meet at. Imports no torch: the process that starts the others only waits."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lkv.errors import UserError
from lkv.files.atomic import temporary_folder

MEET = "LKV_MEET"  # environment variable: where processes started here find each other
LOST = 75  # exit code of a process that ended because another one had
GRACE = 5.0  # seconds in which the others may end by themselves, and say why


def world() -> int:
    """How many processes this one is among; 1 where nobody said."""
    said = os.environ.get("WORLD_SIZE", "1")
    if not re.fullmatch("[1-9][0-9]{0,4}", said):
        raise UserError(f"WORLD_SIZE is {said[:40]!r}; it must be a whole number of 1 or more, or unset")
    return int(said)


def launch(processes: int, command: Sequence[str]) -> int:
    """Runs `command` so often at once; 0, or the exit code of what failed (128 + n: ended by signal n).

    The first writes to this terminal; of what the others say, an error is shown. When one ends badly, on
    Ctrl-C and on SIGTERM, all end.
    """
    running: list[subprocess.Popen[bytes]] = []
    before = signal.signal(signal.SIGTERM, _terminated)
    with temporary_folder() as folder:
        try:
            for rank in range(processes):
                running.append(_start(command, rank, processes, folder))
            while all(process.poll() in (None, 0) for process in running) and _alive(running):
                time.sleep(0.1)
            _wait(running)
        except KeyboardInterrupt:
            _wait(running)
            return 130
        except _Terminated:
            return 128 + signal.SIGTERM
        finally:
            signal.signal(signal.SIGTERM, before)
            own = [process.poll() for process in running]  # before the others are ended
            for process in running:
                process.terminate()
            for process in running:
                process.wait()
        bad = [(rank, code) for rank, code in enumerate(own) if code]
        if not bad:
            return 0
        rank, code = min(bad, key=lambda pair: (pair[1] == LOST, pair[1] < 0, pair[0]))
        if rank > 0:
            sys.stderr.write((folder / f"{rank}.err").read_text(encoding="utf-8", errors="replace"))
    if code > 0:
        return code
    print(f"lkv: error: process {rank} of {processes} was ended by signal {-code}", file=sys.stderr)
    return 128 - code


def _start(command: Sequence[str], rank: int, processes: int, folder: Path) -> subprocess.Popen[bytes]:
    env = os.environ | {"RANK": str(rank), "WORLD_SIZE": str(processes), MEET: f"file://{folder}/meet"}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        env[name] = _share(os.environ.get(name), processes)
    if rank == 0:
        return subprocess.Popen(command, env=env)
    with (folder / f"{rank}.err").open("wb") as said:
        return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=said)


def _share(threads: str | None, processes: int) -> str:
    """So many threads a process that all have as many as this one would."""
    if threads is None:
        return str(max(1, (os.cpu_count() or 1) // processes))
    return str(max(1, int(threads) // processes)) if threads.isdecimal() else threads


def _alive(running: Sequence[subprocess.Popen[bytes]]) -> bool:
    return any(process.returncode is None for process in running)


def _wait(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Until all have ended, GRACE at most."""
    end = time.monotonic() + GRACE
    while any(process.poll() is None for process in running) and time.monotonic() < end:
        time.sleep(0.1)


class _Terminated(Exception):
    """SIGTERM came."""


def _terminated(number: int, frame: object) -> NoReturn:
    raise _Terminated
