"""A command in a process forked from one that has imported everything and run nothing.

Forked from the tests' own process it could hang: the threads of Typst, OpenMP and progress bars, which other
tests have started there, do not live on in it.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["lkv.cli", "pandas", "torch", "transformers", "matplotlib.pyplot", "peft"])


def start(words: list[str], said: Path) -> ForkServerProcess:
    """`lkv` with these words; what it prints goes to the file `said`."""
    process = FORKS.Process(target=_run, args=(words, str(said), os.getcwd()))
    process.start()
    return process


def _run(words: list[str], said: str, folder: str) -> None:
    from lkv.cli import main

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
