"""Bad input of every kind, for every verb: one line that says so, exit code 2, and nothing changed."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from bad_files import COMMANDS, cell_cases, csv_cases, json_cases, table_cases
from bad_input import Case, listing, rehashed
from bad_models import adapter_cases, model_cases, source_cases, spec_cases, yaml_cases
from bad_values import file_cases, line_cases, value_cases, word_cases

from lkv.cli.main import main
from lkv.cli.parser import parser
from lkv.errors import UserError, plain

pytestmark = pytest.mark.usefixtures("one_parser")


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    before, threads = dict(os.environ), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_command_of_the_campaign_runs_on_the_good_folder(verb: str, here: Path) -> None:
    assert main(COMMANDS[verb].split()) == 0


CASES = [
    *json_cases(),
    *csv_cases(),
    *line_cases(),
    *value_cases(),
    *word_cases(),
    *file_cases(),
    *spec_cases(),
    *yaml_cases(),
    *table_cases(),
    *cell_cases(),
    *source_cases(),
    *adapter_cases(),
    *model_cases(),
]


def named(case: Case) -> str:
    return case.name.replace("/", ".")


@pytest.mark.parametrize("case", CASES, ids=named)
def test_bad_input_is_refused_in_one_line_and_nothing_changes(
    case: Case, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(case, here, capsys)


def refused(case: Case, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file, change in case.changes.items():
        change(here / file)
        if (here / file).is_file():
            rehashed(here / file)
    before = listing(here)
    capsys.readouterr()
    assert main(case.command.split()) == 2
    said = [line for line in re.split(r"[\r\n]+", capsys.readouterr().err) if line and "%|" not in line]
    assert len(said) == 1, said
    assert said[0].startswith("lkv: error: ")
    assert re.search(case.says, said[0]), said[0]
    assert listing(here) == before


def all_verbs() -> dict[str, argparse.ArgumentParser]:
    """Each verb's own parser; those with verbs of their own (`data`) are gone into."""
    found, todo = {}, [("", parser())]
    while todo:
        name, made = todo.pop()
        inner = [action for action in made._actions if isinstance(action, argparse._SubParsersAction)]
        for action in inner:
            todo += [(f"{name} {verb}".strip(), child) for verb, child in action.choices.items()]
        if not inner:
            found[name] = made
    return found


WHOLE = (
    "-1",
    "1.5",
    "1e3",
    "²",
    "٣",
    "+5",
    " 5",
    "1_000",
    "0x10",
    "nan",
    "9" * 5_000,
    "1000000000001",
    "",
    "-",
)
BAD_WORDS = {
    "whole_0_10000000": WHOLE,
    "whole_1_10000000": ("0", *WHOLE),
    "whole_1_10000": ("0", "10001", *WHOLE),
    "whole_0_4294967295": (
        "-1",
        "1.5",
        "²",
        "9" * 5_000,
        "9223372036854775808",
        "",
        "nan",
        "1e9",
        "-9223372036854775808",
    ),
    "number_above_0": (
        "0",
        "-1",
        "nan",
        "inf",
        "-inf",
        "1e308",
        "1e309",
        "x",
        "",
        "１",
        "1_0",
        "0x1",
        "1e-9999",
    ),
    "temperature_number": ("-1", "nan", "inf", "1e308", "x", "", "１", "-0.5"),
    "weighted_name": ("log=nan", "log=-1", "log=inf", "log=1e308", "log=x", "log=１"),
    "source_word": ("", "[", "5", "[1]", '{"a": "\\ud800"}', "[" * 9_000, "9" * 5_000),
    "method_name": ("", "snapvk", "Full", "\0"),
    "None": ("", "a\0b", "a\nb", "\x1b[2J", "\ud800", "\u2028"),
    "Path": ("", "a\0b", "a\nb", "\x1b[2J", "\ud800"),
}


def flags() -> Iterator[tuple[str, str, str]]:
    """(verb, flag, type) of every flag that takes a value."""
    for verb, made in all_verbs().items():
        for action in made._actions:
            if action.option_strings and action.nargs != 0 and not action.choices:
                yield verb, action.option_strings[-1], getattr(action.type, "__name__", "None")


@pytest.mark.parametrize(("verb", "flag", "kind"), flags())
def test_a_flag_refuses_every_wrong_word_by_name(
    verb: str, flag: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parse = parser().parse_args
    for word in BAD_WORDS[kind]:
        with pytest.raises(UserError) as refused:
            parse([*verb.split(), f"{flag}={word}"])
        said = plain(refused.value)
        assert said.isprintable() and len(said) < 2_100
        assert flag in said or kind in ("weighted_name", "source_word", "method_name"), said
    assert main([*verb.split(), f"{flag}={BAD_WORDS[kind][-1]}"]) == 2
    assert capsys.readouterr().err == f"lkv: error: {said}\n"
