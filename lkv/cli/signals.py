"""Ctrl-C, SIGTERM and a closed terminal end a command with one line, after it has cleaned up."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "the terminal is gone"}
DEFAULT = (signal.SIG_DFL, signal.default_int_handler)


class Ended(KeyboardInterrupt):
    """SIGTERM or SIGHUP arrived; treated like Ctrl-C."""


class FirstSignal:
    """Handles signals and remembers the first: a library may turn what it raises into another error."""

    number: int | None = None

    def __call__(self, number: int, frame: object) -> None:
        again, self.number = self.number is not None, self.number or number
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if not again:  # it is cleaning up already
            raise Ended


def message(number: int) -> str:
    return f"{WORDS[signal.Signals(number)]}; run the same command again to go on from what is finished"


def leave_at_once() -> None:
    """Lets a signal end the process at once with its line; until `caught` there is nothing to clean up."""
    for number in WORDS:
        if signal.getsignal(number) in DEFAULT:
            signal.signal(number, _leave)


@contextmanager
def caught() -> Iterator[FirstSignal]:
    """Within it, signals that are not ignored raise KeyboardInterrupt; the first is remembered."""
    handler = FirstSignal()
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in WORDS:
            if (earlier := signal.getsignal(number)) in (*DEFAULT, _leave):
                before[number] = earlier
                signal.signal(number, handler)
    try:
        yield handler
    finally:
        for caught_number, handled in before.items():
            signal.signal(caught_number, handled)


def _leave(number: int, frame: object) -> NoReturn:
    os.write(2, f"lkv: error: {message(number)}\n".encode())
    os._exit(128 + number)
