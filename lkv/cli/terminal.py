"""Standard output and error in every state: closed, a pipe that nobody reads, ASCII only."""

from __future__ import annotations

import io
import os
import sys

GONE = 141  # exit code where the reader of a pipe has left: what a shell says of SIGPIPE


def prepare() -> None:
    """Replaces closed streams by /dev/null, and prints characters that the terminal lacks as escapes.

    Otherwise the next file opened would take a closed stream's number, and receive what libraries print.
    """
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
    """Prints a line on standard error, if that is still read."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _to_nowhere(2)


def finish(code: int) -> int:
    """Flushes both streams and returns the exit code: `code`, unless output could not be written.

    A stream that fails is replaced by /dev/null, because Python would fail on it again at exit.
    """
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
