"""Result CSVs: written with their SHA-256 beside them, and read back only whole.

What is read must agree with its SHA-256 (lkv.files.sums) where that is kept, and with the contract always:
each row has every cell, text stays text, numbers lie within their bounds.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lkv.errors import UserError
from lkv.files.names import cell_text, quoted_cell
from lkv.files.reading import regular
from lkv.files.sums import check_sum, write_summed
from lkv.results.columns import ADDED, BOUNDS, CONTRACTS, EDGE, HUGE, NEEDED, TEXT, WHOLE

if TYPE_CHECKING:
    import pandas as pd


def write_csv(
    path: str | Path, rows: Iterable[Mapping[str, Any]] | pd.DataFrame, columns: Iterable[str]
) -> None:
    """Long-format CSV: UTF-8, `.` decimal, one header, `columns` in order, no index, missing left empty."""
    import pandas as pd

    columns = list(columns)
    frame = rows.copy() if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows), columns=columns)
    for name in columns:
        if name.endswith("_bytes"):  # whole numbers to the last digit, empty where unknown
            frame[name] = pd.to_numeric(frame[name]).round().astype("Int64")
    frame = _texts(frame[columns], quoted_cell)
    text = frame.to_csv(columns=columns, index=False, float_format="%.6g", lineterminator="\n")
    write_summed(path, text)


def read_csv(path: str | Path, columns: Iterable[str]) -> pd.DataFrame:
    """Reads a result CSV, or its packed copy, whole: the frame of `columns`, empty cells as missing.

    A column that was added to the contract later is missing in all rows of an older file. Raises UserError,
    which names file and row, for a file that is damaged, torn or of another contract.
    """
    import pandas as pd

    columns, path = list(columns), stored(path)
    regular(path, f"no such results file: {path}; run the rule that writes it, or correct the path")
    content = path.read_bytes()
    check_sum(path, hashlib.sha256(content).hexdigest())
    header, rows = _rows(path, content)
    _check_header(path, header, columns)
    frame = pd.DataFrame(rows, columns=header, dtype=str).reindex(columns=columns, fill_value="")
    for name in columns:
        empty = frame[name] == ""
        if name in NEEDED and empty.any():
            raise UserError(f"{path}, row {int(empty.argmax()) + 2}: {name} is empty; make the file again")
        if name in TEXT:
            frame[name] = frame[name].where(~empty)
        else:
            frame[name] = _numbers(frame[name], empty, name, path)
    return _texts(frame, cell_text)


def _check_header(path: Path, header: list[str], columns: list[str]) -> None:
    """Refuses a file without the columns, added ones apart; for a contract also other columns and orders."""
    contract = tuple(columns)
    missing = [name for name in columns if name not in (*header, *ADDED.get(contract, ()))]
    if missing:
        raise UserError(f"{path} lacks the columns {', '.join(missing)}; expected: {', '.join(columns)}")
    if contract not in CONTRACTS:
        return
    unknown = [name for name in header if name not in columns]
    if unknown:
        raise UserError(
            f"{path} has unknown columns: {', '.join(unknown)[:200]}; expected: {', '.join(columns)}"
        )
    if header != [name for name in columns if name in header]:
        raise UserError(f"{path} has its columns in another order; expected: {', '.join(columns)}")


def stored(path: str | Path) -> Path:
    """A result file, or where it is not there the packed copy (.gz) that a published study holds of it."""
    path = Path(path)
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.is_file() and not path.is_file() else path


def _rows(path: Path, content: bytes) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV's bytes, each row as long as the header."""
    try:
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        text = content.decode("utf-8-sig")
        if "\0" in text:
            raise ValueError("it holds binary data")
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path} is not a whole gzip file ({error}); get it or make it again") from None
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV in UTF-8 ({error}); make it again") from None
    if not lines or not any(lines[0]):
        raise UserError(f"{path} is empty; run the step that writes it again")
    header, *rows = lines
    if len(set(header)) < len(header):
        raise UserError(f"{path} has a column twice; make it again")
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise UserError(
                f"{path}, row {number}: {len(row)} cells, the header has {len(header)}; make the file again"
            )
    return header, rows


def _numbers(cells: pd.Series[Any], empty: pd.Series[bool], name: str, path: Path) -> pd.Series[Any]:
    """A column of numbers, missing where cells are empty; text and what is out of bounds are refused."""
    import pandas as pd

    numbers = pd.to_numeric(cells.where(~empty), errors="coerce")
    low, high = BOUNDS.get(name, (-HUGE, HUGE))
    wrong = ~empty & ~numbers.between(low - EDGE, high + EDGE)
    if name in WHOLE:
        wrong |= ~empty & (numbers % 1 != 0)
    if wrong.any():
        at = int(wrong.to_numpy().argmax())
        kind = "a whole number" if name in WHOLE else "a number"
        allowed = f"{kind} from {low:g} to {high:g}" if name in BOUNDS else kind
        raise UserError(
            f"{path}, row {at + 2}: {name} is {cells.iloc[at][:40]!r}, not {allowed}; make the file again"
        )
    return numbers


def _texts(frame: pd.DataFrame, change: Callable[[Any], Any]) -> pd.DataFrame:
    names: Sequence[str] = [name for name in frame.columns if frame[name].dtype.kind not in "iufb"]
    return frame.assign(**{name: frame[name].map(change, na_action="ignore") for name in names})
