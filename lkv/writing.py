"""How files are written: under a temporary name, synced, renamed. What a killed process left is swept.

A temporary file or folder lies beside what it will become and is locked while its process lives, so that a
sweep removes what dead processes left, and nothing that a running neighbour still writes.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from lkv.errors import UserError

SUFFIX = ".lkv-tmp"
LEFT = re.compile(rf"\..+\.[0-9a-f]{{8}}{re.escape(SUFFIX)}")
DESCRIPTOR = re.compile(r"/dev/(?:stdout|stderr|fd/(\d+))|/proc/self/fd/(\d+)")
HERE: set[tuple[int, Path]] = set()  # this process's temporary files and folders, each with the process
LONGEST = 50  # characters of a temporary name that are the file's own: a name has 255 bytes at most


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a temporary neighbour of `path`; on success fsyncs it and renames it over `path`.

    Readers see the old file or the whole new one, never a part of it. A link stays, and what it points to is
    replaced. Standard output, a pipe and /dev/null are written through.
    """
    path = Path(path)
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        if is_stream(path):
            with _through(path, mode, text) as stream:
                yield stream
            return
        place = target(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        sweep(place.parent)
        with _claimed(place, _new_file) as (temporary, descriptor):
            with os.fdopen(os.dup(descriptor), mode, **text) as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(place)
        sync(place.parent)
    except OSError as error:
        if error.errno is not None and (error.filename is None or str(error.filename).endswith(SUFFIX)):
            error.filename = str(path)  # a failed write does not know where it went
        raise


def is_stream(path: Path) -> bool:
    """Whether `path` is written through: standard output and error, a pipe, a terminal, /dev/null."""
    if DESCRIPTOR.fullmatch(str(path)):
        return True
    try:
        found = path.stat()
    except (OSError, ValueError):
        return False
    if stat.S_ISCHR(found.st_mode):
        return found.st_rdev == os.stat(os.devnull).st_rdev or str(path.resolve()).startswith("/dev/pts/")
    return stat.S_ISFIFO(found.st_mode)


def target(path: Path) -> Path:
    """The file that is written for `path`: behind links. What is there and is no file is refused."""
    if path.is_symlink() and not path.exists():
        raise UserError(
            f"{path} is a link to {os.readlink(path)}, which is not there; remove it, or give another path"
        )
    place = path.resolve()
    if place.exists() and not place.is_file():
        what = "a folder" if place.is_dir() else "a device or socket"
        raise UserError(f"{path} is {what}, not a file; give the path of a file")
    return place


@contextmanager
def temporary_folder(out: Path | None = None) -> Iterator[Path]:
    """A folder that is removed in the end: beside `out`, or where temporary files lie."""
    place = out or Path(tempfile.gettempdir()) / "lkv"
    place.parent.mkdir(parents=True, exist_ok=True)
    sweep(place.parent)
    with _claimed(place, _new_folder) as (folder, _):
        yield folder


def sweep(folder: Path) -> None:
    """Removes the temporary files and folders in `folder` whose process is dead."""
    with suppress(OSError):
        for name in os.listdir(folder):
            if LEFT.fullmatch(name):
                _remove_if_left(folder / name)


def remove_temporaries() -> None:
    """Removes what this process has left: a signal may come between a file's making and its clean-up."""
    for process, path in list(HERE):
        if process == os.getpid():
            _remove(path)


def sync(path: Path) -> None:
    """Waits until a folder's entries, or a file, are on disk; where a file system cannot, it is not asked."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _claimed(place: Path, make: Callable[[Path], int]) -> Iterator[tuple[Path, int]]:
    """A locked temporary neighbour of `place` and its descriptor; removed if it is still there in the end."""
    temporary, descriptor = _claim(place, make)
    try:
        yield temporary, descriptor
    finally:
        _remove(temporary)
        os.close(descriptor)
        HERE.discard((os.getpid(), temporary))


def _claim(place: Path, make: Callable[[Path], int]) -> tuple[Path, int]:
    while True:
        temporary = place.with_name(f".{place.name[:LONGEST]}.{secrets.token_hex(4)}{SUFFIX}")
        HERE.add((os.getpid(), temporary))
        descriptor = make(temporary)
        with suppress(OSError):  # a file system without locks: then nobody sweeps there either
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(FileNotFoundError):  # swept before it was locked
            if os.path.samestat(os.fstat(descriptor), os.stat(temporary)):
                return temporary, descriptor
        os.close(descriptor)
        HERE.discard((os.getpid(), temporary))


def _new_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)


def _new_folder(path: Path) -> int:
    path.mkdir(mode=0o700)  # what comes out of it has rights of its own
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def _remove_if_left(path: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _through(path: Path, mode: str, text: dict[str, Any]) -> IO[Any]:
    """What is there already, as it stands: a redirected output goes on behind what was printed."""
    match = DESCRIPTOR.fullmatch(str(path))
    if match is None:
        return path.open(mode, **text)
    number = match[1] or match[2] or {"/dev/stdout": 1, "/dev/stderr": 2}[str(path)]
    sys.stdout.flush()
    return os.fdopen(os.dup(int(number)), mode, **text)
