"""Ready-made records: a folder of JSONL, a zip of it, or a hub repository, always one record at a time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from lkv.errors import UserError
from lkv.files import archives
from lkv.files.json_files import parse_line
from lkv.files.reading import expanded, regular

FORMS = "folder:PATH, zip:PATH, hub:OWNER/NAME or hub:OWNER/NAME@REVISION"
TIMEOUT = 4  # seconds that the hub has to answer; `datasets` itself retries for half a minute

Placed = Iterator[tuple[str, dict[str, Any]]]


def records(source: str, name: str) -> Placed:
    """(place, record) of one data set, place being what an error names: a file and line, or a hub row.

    `source` is one of FORMS. In a folder and in a zip the set is the file NAME.jsonl, on the hub it is the
    config NAME, split `test`. What is not there is refused at once, a malformed record when it is reached.
    """
    kind, _, where = source.partition(":")
    if kind == "folder" and where:
        return _folder(expanded(where), name)
    if kind == "zip" and where:
        return _zip(expanded(where), name)
    if kind == "hub" and (found := re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@(\S+))?", where)):
        return _hub(found[1], found[2], name)
    raise UserError(f"unknown data source {source!r}; allowed: {FORMS}")


def _folder(folder: Path, name: str) -> Placed:
    missing = f"has no {name}.jsonl" if folder.is_dir() else "is no folder"
    path = regular(
        folder / f"{name}.jsonl",
        f"{folder} {missing}; put the file there, or set another source: {FORMS}",
    )

    def lines() -> Placed:
        with path.open("rb") as stream:
            yield from _jsonl(stream, str(path))

    return lines()


def _zip(path: Path, name: str) -> Placed:
    regular(path, f"no such zip file: {path}; correct the path, or set another source: {FORMS}")
    members = [item for item in archives.members(path) if PurePosixPath(item).name == f"{name}.jsonl"]
    if len(members) != 1:
        held = " and ".join(members) or f"no {name}.jsonl"
        raise UserError(f"{path} holds {held}; it must hold one {name}.jsonl, such as data/{name}.jsonl")

    def lines() -> Placed:
        with archives.member(path, members[0]) as stream:
            yield from _jsonl(stream, f"{path}, {members[0]}")

    return lines()


def _hub(repository: str, revision: str | None, name: str) -> Placed:
    """Streams over the network; where the environment says offline, reads what `datasets` has cached."""
    try:
        from datasets import load_dataset
        from huggingface_hub import HfApi, is_offline_mode
    except ImportError:
        raise UserError("hub data need the package datasets; pip install 'lkv[data]'") from None

    def refused(error: Exception) -> UserError:
        first = (str(error).strip() or "no reason given").splitlines()[0]
        return UserError(
            f"cannot read {name} of {repository} from the hub ({type(error).__name__}: {first}); "
            "download the data and set folder:PATH or zip:PATH"
        )

    # The hub's libraries raise whatever their HTTP layer does; any of it means: no data from there.
    try:
        offline = is_offline_mode()
        if not offline:  # ask once, for `datasets` would retry; from here on one commit is read
            revision = HfApi().dataset_info(repository, revision=revision, timeout=TIMEOUT).sha
        rows = load_dataset(repository, name, split="test", revision=revision, streaming=not offline)
    except Exception as error:
        raise refused(error) from None

    def numbered() -> Placed:
        try:
            for number, row in enumerate(rows, 1):
                yield f"{repository}, {name}, row {number}", dict(row)
        except Exception as error:
            raise refused(error) from None

    return numbered()


def _jsonl(stream: Iterable[bytes], file: str) -> Placed:
    for number, line in enumerate(stream, 1):
        place = f"{file}, line {number}"
        yield place, parse_line(line, place)
