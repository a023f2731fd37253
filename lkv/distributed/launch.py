"""Starts several processes of one command on this machine, and ends them together.

Each process learns its place from RANK and WORLD_SIZE, as under torchrun, and a file at which all meet. This
module imports no torch, because the process that starts the others only waits.

torchrun is not used in its place. When one of two processes fails with one line and exit code 2, `python -m
torch.distributed.run --standalone` (torch 2.13) prints 44 lines more and exits with 1; SIGTERM gives 36 lines
and exit code 1 in place of 143; and it takes 3.7 s of CPU time to start, where this takes 0.2 s. Its own
`--log...` options also catch `--log`. On several machines it is the way, and `lkv.distributed.group`
understands it.
"""

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

MEET = "LKV_MEET"  # environment variable: the file at which processes started here find each other
LOST = 75  # exit code of a process that ended because another one had
GRACE = 5.0  # seconds in which the other processes may end by themselves and report their error


def world() -> int:
    """Number of processes that work together; 1 unless WORLD_SIZE says otherwise."""
    size = os.environ.get("WORLD_SIZE", "1")
    if not re.fullmatch("[1-9][0-9]{0,4}", size):
        raise UserError(f"WORLD_SIZE is {size[:40]!r}; it must be a whole number of 1 or more, or unset")
    return int(size)


def launch(processes: int, command: Sequence[str], grace: float = GRACE) -> int:
    """Runs `processes` copies of `command` at once; returns 0 or the first failing exit code.

    A copy ended by signal n counts as exit code 128 + n. The first copy writes to this terminal; of the
    others, only the error of the one that failed first is shown. When one copy fails, on Ctrl-C and on
    SIGTERM, all end, after `grace` seconds at most.
    """
    running: list[subprocess.Popen[bytes]] = []
    before = signal.signal(signal.SIGTERM, _terminated)
    with temporary_folder() as folder:
        try:
            for rank in range(processes):
                running.append(_start(command, rank, processes, folder))
            while all(process.poll() in (None, 0) for process in running) and _alive(running):
                time.sleep(0.1)
            _wait(running, grace)
        except KeyboardInterrupt:
            _wait(running, grace)
            return 130
        except _Terminated:
            return 128 + signal.SIGTERM
        finally:
            signal.signal(signal.SIGTERM, before)
            codes = [process.poll() for process in running]  # before the others are ended
            for process in running:
                process.terminate()
            for process in running:
                process.wait()
        failed = [(rank, code) for rank, code in enumerate(codes) if code]
        if not failed:
            return 0
        rank, code = min(failed, key=lambda pair: (pair[1] == LOST, pair[1] < 0, pair[0]))
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
    with (folder / f"{rank}.err").open("wb") as errors:
        return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=errors)


def _share(threads: str | None, processes: int) -> str:
    """Threads per process, so that all together use as many as this process would."""
    if threads is None:
        return str(max(1, (os.cpu_count() or 1) // processes))
    return str(max(1, int(threads) // processes)) if threads.isdecimal() else threads


def _alive(running: Sequence[subprocess.Popen[bytes]]) -> bool:
    return any(process.returncode is None for process in running)


def _wait(running: Sequence[subprocess.Popen[bytes]], grace: float) -> None:
    """Waits until all have ended, for `grace` seconds at most."""
    end = time.monotonic() + grace
    while any(process.poll() is None for process in running) and time.monotonic() < end:
        time.sleep(0.1)


class _Terminated(Exception):
    """SIGTERM came."""


def _terminated(number: int, frame: object) -> NoReturn:
    raise _Terminated
