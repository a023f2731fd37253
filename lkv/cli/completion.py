"""`lkv --completion SHELL`: a script by which a shell completes commands, flags, choices and paths."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lkv.errors import UserError

SHELLS = ("bash", "zsh", "tcsh")


class PrintCompletion(argparse.Action):
    """Prints the script and ends, as --help does."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any, **settings: Any) -> None:
        [_, shell, *_] = args
        print(script(parser, str(shell)))
        parser.exit()


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    try:
        import shtab
    except ModuleNotFoundError:
        raise UserError("shell completion needs the package shtab; pip install 'lkv[completion]'") from None
    for action in _actions(parser):
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)
