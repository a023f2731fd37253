"""Result CSVs age well: every committed file is read, also once its contract has another column."""

from __future__ import annotations

import csv
import gzip
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from lkv.errors import UserError
from lkv.results import columns, csv_files
from lkv.results.csv_files import read_csv, write_csv

ROOT = Path(__file__).parents[1]
NAMES = {getattr(columns, name): name for name in dir(columns) if name.endswith("_COLUMNS")}
ROW = {"method": "full", "budget": 0, "sample": 1, "length": 64, "step": 1}


def header(path: Path) -> tuple[str, ...]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open() as stream:
        return tuple(next(csv.reader(stream)))


def committed() -> list[str]:
    """The result CSVs of this checkout that git tracks; without git, all that are there."""
    done = subprocess.run(["git", "ls-files", "results", "reports"], cwd=ROOT, capture_output=True, text=True)
    names = done.stdout.splitlines() or [
        str(path.relative_to(ROOT)) for path in [*ROOT.glob("results/**/*"), *ROOT.glob("reports/**/*")]
    ]
    return sorted(name for name in names if name.endswith((".csv", ".csv.gz")))


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Each contract with two more columns, a number and a text, declared as added."""
    longer = {contract: (*contract, "made_up", "made_up_text") for contract in columns.CONTRACTS}
    for contract in longer.values():
        monkeypatch.setitem(columns.ADDED, contract, contract[-2:])
    monkeypatch.setattr(csv_files, "CONTRACTS", columns.CONTRACTS | set(longer.values()))
    monkeypatch.setattr(csv_files, "TEXT", columns.TEXT | {"made_up_text"})
    return longer


def test_every_contract_is_listed() -> None:
    assert set(NAMES) == columns.CONTRACTS


def test_added_columns_are_the_last_of_their_contract_and_may_be_empty() -> None:
    for contract, added in columns.ADDED.items():
        assert contract in columns.CONTRACTS
        assert contract[-len(added) :] == added
        assert not set(added) & columns.NEEDED


def test_every_committed_file_is_read_today_and_once_its_contract_has_another_column(
    made_up: dict[tuple[str, ...], tuple[str, ...]],
) -> None:
    """Each with the longer contract, one of each kind with today's too: alike but for the added columns."""
    files = committed()
    assert len(files) > 100
    seen = set()
    for name in files:
        contract = header(ROOT / name)
        [known] = [one for one in NAMES if one[: len(contract)] == contract]
        later = read_csv(ROOT / name, made_up[known])
        assert list(later) == [*known, "made_up", "made_up_text"]
        assert later[["made_up", "made_up_text"]].isna().all(axis=None), name
        if NAMES[known] not in seen:
            pd.testing.assert_frame_equal(later[list(known)], read_csv(ROOT / name, known))
            assert len(later) == len(pd.read_csv(ROOT / name)), name
        seen.add(NAMES[known])
    assert len(seen) >= 10


@pytest.mark.parametrize("contract", sorted(NAMES), ids=NAMES.get)
def test_a_file_of_any_contract_is_read_once_the_contract_has_another_column(
    contract: tuple[str, ...], made_up: dict[tuple[str, ...], tuple[str, ...]], tmp_path: Path
) -> None:
    path = tmp_path / "a.csv"
    row = {name: value for name, value in ROW.items() if name in contract}
    write_csv(path, [{**dict.fromkeys(contract), **row}], contract)
    found = read_csv(path, made_up[contract])
    assert found["made_up"].dtype.kind == "f" and found[list(row)].to_dict("records") == [row]
    assert found.drop(columns=list(row)).isna().all(axis=None)
    write_csv(path, [{**dict.fromkeys(made_up[contract]), **row, "made_up": 5}], made_up[contract])
    assert read_csv(path, made_up[contract])["made_up"].tolist() == [5]


@pytest.mark.parametrize("contract", sorted(NAMES), ids=NAMES.get)
def test_columns_that_lack_without_being_added_are_unknown_or_are_swapped_are_refused(
    contract: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(",".join(contract[:-1]) + "\n")
    with pytest.raises(UserError, match=f"lacks the columns {contract[-1]}"):
        read_csv(path, contract)
    path.write_text(",".join((*contract, "made_up")) + "\n")
    with pytest.raises(UserError, match="has unknown columns: made_up; expected"):
        read_csv(path, contract)
    path.write_text(",".join((contract[1], contract[0], *contract[2:])) + "\n")
    with pytest.raises(UserError, match="has its columns in another order"):
        read_csv(path, contract)
