"""Commands and code in processes forked from one that has imported everything and run nothing.

Such a process starts at once, where a new one imports torch for seconds. Forked from the tests' own process
it could hang: the threads of Typst, OpenMP and progress bars, which other tests have started there, do not
live on in it.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["lkv.cli.main", "pandas", "torch", "transformers", "matplotlib.pyplot", "peft"])


def start(words: list[str], said: Path) -> ForkServerProcess:
    """`lkv` with these words; what it prints goes to the file `said`."""
    process = FORKS.Process(target=_run, args=(words, str(said), os.getcwd()))
    process.start()
    return process


def _run(words: list[str], said: str, folder: str) -> None:
    from lkv.cli.main import main

    code = 1
    try:
        os.chdir(folder)
        stream = Path(said).open("w", buffering=1)  # noqa: SIM115 - open until the process ends
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        sys.stdout = sys.stderr = stream
        code = main(words)
    finally:
        sys.stdout.flush()
        os._exit(code)


def in_two_processes(code: str, *arguments: str) -> None:
    """Runs the same code twice at once, in processes that meet as those of `lkv.distributed.launch` do."""
    with tempfile.TemporaryDirectory() as folder:
        both = [FORKS.Process(target=_one_of_two, args=(code, arguments, rank, folder)) for rank in (0, 1)]
        for process in both:
            process.start()
        while any(process.is_alive() for process in both) and not any(process.exitcode for process in both):
            time.sleep(0.02)
        for process in both:  # where one has failed the other would wait for it
            process.terminate()
            process.join()
        assert [process.exitcode for process in both] == [0, 0]


def _one_of_two(code: str, arguments: tuple[str, ...], rank: int, folder: str) -> None:
    from lkv.distributed.launch import MEET

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", MEET: f"file://{folder}/meet"}
    sys.argv = ["-c", *arguments]
    exec(code, {"__name__": "__main__"})
