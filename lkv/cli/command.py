"""What a command of `lkv` is, and how its help looks."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from lkv.cli.arguments import plain_path, plain_text
from lkv.errors import UserError


@dataclass(frozen=True)
class Command:
    """One command: what it does (the docstring of `run`), its flags, and an example of it."""

    name: str  # "train", or "data train"
    run: Callable[[argparse.Namespace], None]
    flags: Callable[[argparse.ArgumentParser], None]
    example: str  # the words behind the name; it runs in a checkout in which `make demo` has run
    needs: str = ""  # what else the example needs


class Help(argparse.RawDescriptionHelpFormatter):
    """Shows each default in the words that a user would type."""

    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(prog, **{"max_help_position": 30} | settings)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if (
            action.option_strings
            and action.nargs != 0
            and action.default not in (None, argparse.SUPPRESS, [])
        ):
            text += f" (default: {shown(action.default)})"
        return f"{text} (required)" if action.option_strings and action.required else text


def shown(default: object) -> str:
    """A default in the words of the command line."""
    words = default if isinstance(default, list) else [default]
    return " ".join(f"{word:g}" if isinstance(word, float) else str(word) for word in words)


class Parser(argparse.ArgumentParser):
    """Errors are one line, like all of lkv; every text and every path is checked."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"formatter_class": Help} | settings)
        self.register("type", None, plain_text)
        self.register("type", Path, plain_path)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


class Top(Parser):
    """The parser of `lkv` itself, whose help lists the commands in groups."""

    groups: Mapping[str, Sequence[str]] = {}  # title → names of commands

    def format_help(self) -> str:
        commands = next(a for a in self._actions if isinstance(a, argparse._SubParsersAction))
        explained = {action.dest: action for action in commands._get_subactions()}
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for title, names in self.groups.items():
            _section(formatter, title, [explained[name] for name in names])
        _section(formatter, "options", [action for action in self._actions if action is not commands])
        formatter.add_text(self.epilog)
        return formatter.format_help()


def _section(formatter: argparse.HelpFormatter, title: str, actions: Iterable[argparse.Action]) -> None:
    formatter.start_section(title)
    formatter.add_arguments(actions)
    formatter.end_section()


def _lines(call: str, width: int = 100) -> str:
    """A call over several lines, where it is long: broken before flags, as a shell takes it."""
    first, *flags = call.replace(" --", "\n--").splitlines()
    lines = [first]
    for flag in flags:
        if len(lines[-1]) + len(flag) > width:
            lines.append(f"    {flag}")
        else:
            lines[-1] += f" {flag}"
    return " \\\n".join(lines)


Commands = argparse._SubParsersAction  # of argparse, which has no public name for it


def add(commands: Commands[Parser], command: Command) -> None:
    """Adds a command with its flags to `lkv`, or to `lkv data`."""
    name, text = command.name.split()[-1], command.run.__doc__
    needs = f" (needs {command.needs})" if command.needs else ""
    example = f"example{needs}:\n  {_lines(f'lkv {command.name} {command.example}')}"
    made = commands.add_parser(name, help=text, description=text, epilog=example)
    command.flags(made)
    made.add_argument(
        "--log", type=Path, metavar="FILE", help="append a line per event to this file (default: no log)"
    )
    made.set_defaults(run=command.run)
