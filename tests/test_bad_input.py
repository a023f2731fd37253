"""Bad input of every kind, for every verb: one line that says so, exit code 2, and nothing changed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bad_files import COMMANDS, TABLES, cell_cases, csv_cases, json_cases
from bad_values import file_cases, line_cases, value_cases, word_cases
from bad_input import Case, listing, make_world, rehashed
from lkv.cli import main


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        make_world(root)
    return root


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the good folder, in which the test runs."""
    root = tmp_path / "here"
    shutil.copytree(world, root)
    monkeypatch.chdir(root)
    return root


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
    *cell_cases(),
    *line_cases(),
    *value_cases(),
    *word_cases(),
    *file_cases(),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace("/", "."))
def test_bad_input_is_refused_in_one_line_and_nothing_changes(
    case: Case, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
