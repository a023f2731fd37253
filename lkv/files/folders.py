"""Whose a model's folder is: only what `lkv model` wrote, and is as it was written, is ever replaced."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lkv.errors import UserError
from lkv.files.atomic import sync, temporary_folder
from lkv.files.json_files import write_json
from lkv.files.sums import sha256_file

FORMAT = "lkv-model/1"  # of model.json and of the mark
MARK = ".made-by-lkv"  # the hashes of all files; stays when a workflow deletes model.json before a new run


def files_in(folder: Path) -> Iterator[str]:
    """All that is in a folder but folders, links included, by path inside it."""
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_dir():
            yield path.relative_to(folder).as_posix()


def seal(folder: Path) -> None:
    """Marks a finished folder as ours, with the hash of every file, and waits until all is on disk."""
    files = {name: sha256_file(folder / name) for name in sorted(files_in(folder))}
    write_json(folder / MARK, {"format": FORMAT, "sha256": files})
    for name in files:
        sync(folder / name)
    sync(folder)


def is_ours(folder: Path) -> bool:
    """Whether `lkv model` wrote all that is in a folder, and nothing has changed since."""
    return not foreign(folder)


def foreign(folder: Path) -> str:
    """Why a folder is not ours to replace; nothing if it is, or is empty."""
    found = sorted(files_in(folder))
    if not found:
        return ""
    known = _mark(folder / MARK)
    if known is None:
        return f"it holds {found[0]}, and no mark of lkv model ({MARK}, {FORMAT})"
    for name in found:
        path = folder / name
        if name != MARK and (name not in known or path.is_symlink() or not path.is_file()):
            return f"it holds {name}, which lkv model did not write"
    for name in found:
        if name != MARK and sha256_file(folder / name) != known[name]:
            return f"its {name} has changed since lkv model wrote it"
    return ""


def replaceable(out: Path) -> Path:
    """Where the folder `out` really is, if it may be made anew there: nothing of the user's would go."""
    if out.is_symlink() and not out.exists():
        raise UserError(f"{out} is a link to {os.readlink(out)}, which is not there; give another --out")
    place = out.resolve()
    for name, kept in (("the current folder", Path.cwd()), ("your home folder", Path.home())):
        if place == kept.resolve() or place in kept.resolve().parents:
            raise UserError(f"{out} is {name}, or holds it; give a new folder as --out")
    if os.path.ismount(place):
        raise UserError(f"{out} is a mount point, which cannot be replaced; give a folder in it as --out")
    if place.exists() and not place.is_dir():
        raise UserError(f"{out} is no folder; give a new folder as --out")
    if place.exists() and (reason := foreign(place)):
        raise UserError(
            f"{out} is not replaced: {reason}; give a new folder as --out, or move this one away yourself"
        )
    return place


def replace(out: Path, made: Path) -> None:
    """Puts the folder `made` at `out`; what was there is ours and goes, or comes back if that fails."""
    replaceable(out)  # again: making it took a while
    with temporary_folder(out) as aside:
        before = aside / out.name
        if out.exists():
            out.replace(before)
        try:
            made.replace(out)
        except BaseException:
            if before.exists():
                before.replace(out)
            raise
    sync(out.parent)


def _mark(path: Path) -> dict[str, Any] | None:
    """The hashes in a mark of ours."""
    try:
        mark = json.loads(path.read_text(encoding="utf-8")) if not path.is_symlink() else None
    except (OSError, ValueError):
        return None
    if not isinstance(mark, dict) or mark.get("format") != FORMAT or not isinstance(mark.get("sha256"), dict):
        return None
    return mark["sha256"]
