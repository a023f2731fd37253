"""Zip archives of others: one member is read by its exact name, nothing is unpacked by a name of theirs."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lkv.errors import UserError

MEMBERS = 100_000
SMALL = 1 << 26  # bytes that a member may have however well it is packed
RATIO = 100  # bytes out of one byte; JSON lines come to some ten, weights to two
# RuntimeError: encrypted; NotImplementedError: packed in a way that Python cannot read.
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError)


def members(path: Path) -> list[str]:
    """The names that an archive holds."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (*DAMAGED, OSError) as error:
        raise UserError(f"{path} is not a zip file ({error}); get it again") from None
    if len(names) > MEMBERS:
        raise UserError(f"{path} holds {len(names):,} files, more than {MEMBERS:,}; get the right one")
    return names


@contextmanager
def member(path: Path, name: str) -> Iterator[IO[bytes]]:
    """The content of one member. No more bytes come out than the archive declares, and it may not declare
    many out of few."""
    try:
        with zipfile.ZipFile(path) as archive:
            about = archive.getinfo(name)
            if about.file_size > max(SMALL, RATIO * about.compress_size):
                raise UserError(
                    f"{path}, {name}: {about.compress_size:,} bytes would become {about.file_size:,}; get "
                    "the right archive"
                )
            with archive.open(about) as stream:
                yield stream
    except DAMAGED as error:
        raise UserError(f"{path}, {name}: cannot be unpacked ({error}); get it again") from None
