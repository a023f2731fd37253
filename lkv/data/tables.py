"""Records of files that others made, at random: JSONL, a JSON list, parquet; a hub data set is such files.

Memory holds where each record lies, never the records: a file may be larger than the machine's memory.
"""

from __future__ import annotations

import codecs
import json
import logging
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from glob import glob
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from lkv.errors import UserError, one_of
from lkv.files.json_files import parse_line
from lkv.files.reading import expanded

log = logging.getLogger("lkv")

FORMS = "file:PATH (JSONL, a JSON list or parquet; * for several) or hub:OWNER/NAME[:CONFIG][@REVISION]"
TIMEOUT = 4  # seconds that the hub has to answer; `datasets` itself retries for half a minute
CHUNK = 1 << 22  # bytes of a JSON list read at a time
ROW_GROUPS = 4  # of a parquet file held in memory

Record = dict[str, Any]


@dataclass(frozen=True)
class File:
    """A file on this machine and the name that errors and facts call it by."""

    path: Path
    name: str


class Table(Protocol):
    """The records of one file."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Record: ...
    def place(self, index: int) -> str: ...


class Records:
    """The records of several files in order, each with its place: what an error names."""

    def __init__(self, files: Sequence[File], columns: Sequence[str]) -> None:
        """Reads JSON through once, so that a malformed record is named before work begins."""
        self._tables = [open_table(file, columns) for file in files]
        self._ends = list(accumulate(map(len, self._tables)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> tuple[str, Record]:
        number = bisect_right(self._ends, index)
        table = self._tables[number]
        inside = index - (self._ends[number] - len(table))
        return table.place(inside), table[inside]


def open_table(file: File, columns: Sequence[str]) -> Table:
    """A file by its ending; `columns` are the fields that anyone will ask for (parquet reads no others)."""
    match file.path.suffix:
        case ".parquet":
            return Parquet(file, columns)
        case ".json" | ".jsonl":
            return Json(file)
    raise UserError(f"{file.name}: unknown kind of file; give .jsonl, .json or .parquet, unpacked")


class Json:
    """A JSONL file or a JSON list, told apart by the first character: both go by either ending."""

    def __init__(self, file: File) -> None:
        self._file = file
        with file.path.open("rb") as stream:
            stream.seek(_mark(file.path))
            head = (byte for byte in iter(lambda: stream.read(1), b"") if not byte.isspace())
            self._listed = next(head, b"") == b"["
        self._starts, self._ends, self._lines = array("q"), array("q"), array("q")
        for start, end, line in (_elements if self._listed else _lines)(file):
            self._starts.append(start)
            self._ends.append(end)
            self._lines.append(line)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Record:
        with self._file.path.open("rb") as stream:
            stream.seek(self._starts[index])
            record: Record = json.loads(stream.read(self._ends[index] - self._starts[index]))
        return record

    def place(self, index: int) -> str:
        record = f"record {index + 1}, " if self._listed else ""
        return f"{self._file.name}, {record}line {self._lines[index]}"


def _mark(path: Path) -> int:
    """Bytes of the byte order mark that some Windows tools write before the text: 3, or 0."""
    with path.open("rb") as stream:
        return 3 if stream.read(3) == codecs.BOM_UTF8 else 0


def _lines(file: File) -> Iterator[tuple[int, int, int]]:
    """(first byte, byte behind, line number) of each line that is not blank."""
    end = 0
    with file.path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            start, end = end, end + len(line)
            if not line.isspace():
                parse_line(line, f"{file.name}, line {number}", halves=True)  # whoever reads it skips them
                yield start, end, number


def _elements(file: File) -> Iterator[tuple[int, int, int]]:
    """(first byte, byte behind, line number) of each element of a JSON list, which is read in pieces."""
    with file.path.open("rb") as stream:
        text = _ListText(file, stream)
        text.sign()
        text.go(text.at + 1)  # the bracket that tells a list
        while text.sign() != "]":
            text.number += 1
            if text.number > 1:
                if text.sign() != ",":
                    raise text.malformed("expected , or ] after the record before it")
                text.go(text.at + 1)
                text.sign()
            value, end = text.value()
            _is_record(value, text.place())
            yield text.base + text.at, text.base + end, text.line
            text.go(end)
            text.drop()


class _ListText:
    """The text of a JSON list, of which memory holds a piece, and the place that reading has reached.

    `text` is the piece. It is Latin-1, so that a character is a byte; JSON's own signs are the same in UTF-8.
    `base` is how many bytes of the file come before it. `at` is the place, an index into `text`. `line` and
    `number` are the line and the record that the place is in.
    """

    def __init__(self, file: File, stream: BinaryIO) -> None:
        self._name, self._stream = file.name, stream
        self._scan = json.JSONDecoder().raw_decode
        self.text, self.at = "", 0
        self.base, self.line, self.number = _mark(file.path), 1, 0
        stream.seek(self.base)

    def more(self) -> bool:
        """Reads the next piece and says whether there was one."""
        piece = self._stream.read(max(CHUNK, len(self.text)))
        self.text += piece.decode("latin-1")
        return bool(piece)

    def go(self, to: int) -> None:
        """Moves on to index `to` and counts the lines that this passes."""
        self.line += self.text.count("\n", self.at, to)
        self.at = to

    def sign(self) -> str:
        """Moves on to the next character that is not white space, and returns it; "" at the end."""
        while True:
            to = self.at
            while to < len(self.text) and self.text[to] in " \t\r\n":
                to += 1
            self.go(to)
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def value(self) -> tuple[Any, int]:
        """(the JSON value that begins here, the place behind it)."""
        while True:
            try:
                value, end = self._scan(self.text, self.at)
                self.text[self.at : end].encode("latin-1").decode("utf-8")
                return value, end
            except json.JSONDecodeError as error:  # malformed, or not read to its end yet
                cut = error.pos > len(self.text) - 16 or error.msg.startswith("Unterminated string")
                if not cut or not self.more():
                    raise self.malformed(error.msg) from None
            except RecursionError:
                raise self.malformed("nested too deeply") from None
            except ValueError as error:  # no UTF-8, or more digits than Python reads
                raise self.malformed(str(error).partition(";")[0]) from None

    def drop(self) -> None:
        """Lets go of the text that has been read, once it is as long as a piece."""
        if self.at >= CHUNK:
            self.base, self.text, self.at = self.base + self.at, self.text[self.at :], 0

    def place(self) -> str:
        return f"{self._name}, record {self.number}, line {self.line}"

    def malformed(self, reason: object) -> UserError:
        return UserError(f"{self.place()}: not a JSON record in UTF-8 ({reason})")


def _is_record(value: Any, place: str) -> None:
    if not isinstance(value, dict):
        raise UserError(f"{place}: expected a JSON object, found {type(value).__name__}")


class Parquet:
    """A parquet file, a few row groups of it in memory at a time."""

    def __init__(self, file: File, columns: Sequence[str]) -> None:
        try:
            from pyarrow import ArrowException, parquet
        except ImportError:
            raise UserError("parquet files need pyarrow; pip install 'lkv[data]'") from None
        self._file = file
        try:
            self._parquet = parquet.ParquetFile(file.path)
        except (ArrowException, OSError) as error:
            raise UserError(f"{file.name} is not a parquet file ({error}); get it again") from None
        self._columns = [name for name in columns if name in self._parquet.schema_arrow.names]
        groups = range(self._parquet.num_row_groups)
        self._ends = list(accumulate(self._parquet.metadata.row_group(i).num_rows for i in groups))
        self._group = lru_cache(ROW_GROUPS)(self._read)

    def _read(self, group: int) -> Any:
        return self._parquet.read_row_group(group, columns=self._columns)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Record:
        number = bisect_right(self._ends, index)
        rows = self._group(number)
        start = self._ends[number] - rows.num_rows if self._columns else index
        return dict(rows.slice(index - start, 1).to_pylist()[0]) if self._columns else {}

    def place(self, index: int) -> str:
        return f"{self._file.name}, row {index + 1}"


def locate(address: str, split: str = "train") -> list[File]:
    """The files that an address (see FORMS) stands for; those of a hub data set are downloaded."""
    kind, _, where = address.partition(":")
    if kind == "file" and where:
        paths = sorted(glob(str(expanded(where)))) if "*" in where else [where]
        files = [File(expanded(path), path) for path in paths]
        if not files or not all(file.path.is_file() for file in files):
            raise UserError(f"no such file: {where}; correct the path")
        return files
    hub = re.fullmatch(r"([\w.-]+/[\w.-]+)(?::([^@]+))?(?:@(\S+))?", where)
    if kind == "hub" and hub:
        return _from_hub(hub[1], hub[2], hub[3], split)
    raise UserError(f"unknown address of data {address!r}; allowed: {FORMS}")


def _from_hub(repository: str, config: str | None, revision: str | None, split: str) -> list[File]:
    try:
        from datasets import load_dataset_builder
        from huggingface_hub import HfApi, hf_hub_download
    except ImportError:
        raise UserError("hub data need the package datasets; pip install 'lkv[data]'") from None
    # The hub's libraries raise whatever their HTTP layer does; any of it means: no data from there.
    try:
        commit = HfApi().dataset_info(repository, revision=revision, timeout=TIMEOUT).sha
        builder = load_dataset_builder(repository, config, revision=commit)
        names = [in_repository(url) for url in split_files(builder.config.data_files, split, repository)]
        log.info("%s: %d files of %s@%s", split, len(names), repository, commit)
        return [
            File(
                Path(hf_hub_download(repository, name, repo_type="dataset", revision=commit)),
                f"{repository}@{commit}/{name}",
            )
            for name in names
        ]
    except UserError:
        raise
    except Exception as error:
        first = (str(error).strip() or "no reason given").splitlines()[0]
        raise UserError(
            f"cannot fetch {repository} from the hub ({type(error).__name__}: {first}); download the data "
            "and set file:PATH, or log in to the hub where the set asks for it"
        ) from None


def split_files(data_files: Mapping[Any, Sequence[str]] | None, split: str, repository: str) -> list[str]:
    """The files of one split, of what `datasets` has found in a repository."""
    found = {str(name): list(files) for name, files in (data_files or {}).items()}
    if split not in found:
        raise one_of(f"split of {repository}", split, found)
    return found[split]


def in_repository(url: str) -> str:
    """PATH of hf://datasets/OWNER/NAME@REVISION/PATH."""
    found = re.fullmatch(r"hf://datasets/[^/]+/[^/@]+(?:@[^/]+)?/(.+)", url)
    if found is None:
        raise UserError(f"{url} is no file of a hub repository; download it and set data: file:PATH")
    return found[1]
