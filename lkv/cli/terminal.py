"""Standard output and error, whatever they are: closed, a pipe that nobody reads, ASCII alone."""

from __future__ import annotations

import io
import os
import sys

GONE = 141  # exit code where the reader of a pipe has left: what a shell says of SIGPIPE


def prepare() -> None:
    """A closed stream becomes /dev/null: the next file opened would take its number, and with it what any
    library prints. A character that the terminal does not have is printed as an escape."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            _to_nowhere(number)
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            setattr(sys, name, open(number, mode, closefd=False, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """A line on standard error, where that is still read."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _to_nowhere(2)


def finish(code: int) -> int:
    """The exit code once all that was printed has left; `code` where it has arrived. A stream that fails is
    given up: else Python would fail on it once more when it exits."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except OSError as error:
            _to_nowhere(number)
            if isinstance(error, BrokenPipeError):
                code = GONE
            elif number == 1:
                say(f"lkv: error: cannot write standard output: {error.strerror}; send it elsewhere")
                code = 2
    return code


def _to_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)
