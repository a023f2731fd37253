"""Leases of GPUs by file locks: a job gets a GPU of its own, or a share of one."""

from __future__ import annotations

import fcntl
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import torch

from lkv.errors import UserError, one_of
from lkv.model.device import share_gpu

log = logging.getLogger("lkv")

_leases: list[IO[str]] = []  # open files: the locks live as long as the process


def pick(name: str, jobs: int = 1, notify: Callable[[str], None] = log.warning) -> torch.device:
    """The device called `name` (auto, cpu or cuda); on CUDA, the first GPU with room for one of `jobs`.

    With `jobs` of 1 a job takes a free GPU. If all are shared, it keeps further jobs off one of them and
    waits until that one is free. Raises UserError where no GPU can be leased.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise one_of("device", name, ["auto", "cpu", "cuda"])
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("device 'cuda' was asked for, but torch sees no GPU; use --device auto or cpu")
    cards = [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]
    index = _lease_alone(cards, notify) if jobs == 1 else _lease_place(cards, jobs)
    if index is not None:
        share_gpu(jobs)
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    raise UserError(
        f"all {len(cards)} GPUs are leased by other lkv jobs; "
        "wait for them, or give snakemake --resources gpu=NUMBER_OF_GPUS (times jobs_per_gpu), "
        "and by hand fewer --processes"
    )


def _lease_place(cards: Sequence[str], jobs: int) -> int | None:
    """A share of a GPU that no job has, or waits for, alone; GPUs fill evenly."""
    for slot in range(jobs):
        for index, card in enumerate(cards):
            unwanted = _locked(f"{card}-wanted", fcntl.LOCK_SH, tries=3)
            shared = unwanted and _locked(card, fcntl.LOCK_SH)
            place = shared and _locked(f"{card}-{slot}", fcntl.LOCK_EX)
            if unwanted:
                unwanted.close()
            if shared and place:
                _leases.extend([shared, place])
                return index
            if shared:
                shared.close()
    return None


def _lease_alone(cards: Sequence[str], notify: Callable[[str], None]) -> int | None:
    """A free GPU; else one that is shared, once the jobs on it are done."""
    for kind in (fcntl.LOCK_EX, fcntl.LOCK_SH):
        for index, card in enumerate(cards):
            wanted = _locked(f"{card}-wanted", fcntl.LOCK_EX, tries=3)
            held = wanted and _locked(card, kind)
            if held and kind == fcntl.LOCK_SH:
                notify(f"waiting for the jobs that share GPU {index}")
                fcntl.flock(held, fcntl.LOCK_EX)
            if wanted:
                wanted.close()
            if held:
                _leases.append(held)
                return index
    return None


def _locked(name: str, kind: int, tries: int = 1) -> IO[str] | None:
    """A lock on a GPU, or on a share of it; None if another process holds it.

    Give several `tries` for a lock that others hold only for a moment.
    """
    path = Path(tempfile.gettempdir()) / f"lkv-gpu-{name}.lock"
    if not path.exists():
        path.touch()
    lock = path.open()  # read-only: the file may be another user's
    for _ in range(tries):
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except OSError:
            time.sleep(0.01)
        else:
            return lock
    lock.close()
    return None
