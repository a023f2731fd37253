"""SHA-256 of result files, beside them: what is read again is what was written.

A file NAME has a hidden `.NAME.sha256`; a published study has one SHA256SUMS for all its files. Both are in
sha256sum's form. Where a file has a sum of its own, that one counts.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from lkv.errors import UserError
from lkv.files.atomic import atomic_write, is_stream

LIST = "SHA256SUMS"
LEVELS = 4  # how far above a file its study's list may lie: results/STUDY/ablation/ARM/MODEL


def write_summed(path: str | Path, text: str) -> None:
    """Writes a file and its sum; a stream has none.

    While a file that agrees with its sum is replaced, both sums stand beside it: a stop in between leaves one
    of the two with its sum.
    """
    path = Path(path)
    if is_stream(path):
        with atomic_write(path) as stream:
            stream.write(text)
        return
    place = path.resolve()
    new = f"{hashlib.sha256(text.encode('utf-8')).hexdigest()}  {place.name}\n"
    if place.is_file():
        before = sha256_file(place)
        with suppress(UserError):  # a damaged file gets no sum
            check_sum(place, before)
            with atomic_write(beside(place)) as stream:
                stream.write(f"{new}{before}  {place.name}\n")
    with atomic_write(path) as stream:
        stream.write(text)
    with atomic_write(beside(place)) as stream:
        stream.write(new)


def check_sum(path: str | Path, digest: str) -> None:
    """Raises UserError where a sum of the file is kept and is not `digest`."""
    place = Path(path).resolve()
    own = beside(place)
    if own.is_file():
        lines = own.read_bytes().decode("utf-8", "replace").splitlines()
        wanted = {line.partition(" ")[0] for line in lines}
        way_out = f"delete {own.name}"
    else:
        own, listed = _listed(place)
        if not listed:
            return
        wanted = {listed}
        way_out = f"take its line out of {own}"
    if digest not in wanted:
        raise UserError(
            f"{path} is damaged or was edited: its SHA-256 is not that of {own.name}; make it again, or "
            f"{way_out} to take the file as it is"
        )


def beside(path: Path) -> Path:
    """Where the sum of a file lies."""
    return path.with_name(f".{path.name}.sha256")


def _listed(place: Path) -> tuple[Path, str]:
    """The nearest list above a file, and what it says of the file: nothing where it does not name it."""
    for folder in list(place.parents)[:LEVELS]:
        if (found := folder / LIST).is_file():
            name = place.relative_to(folder).as_posix()
            for line in found.read_bytes().decode("utf-8", "replace").splitlines():
                digest, _, listed = line.partition(" ")
                if listed[1:] == name:  # after the space: another one, or * for binary
                    return found, digest or "?"
            return found, ""
    return place, ""


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file, read in pieces; hex."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()
