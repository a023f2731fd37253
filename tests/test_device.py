"""Jobs lease GPUs: one alone, or a place on one that several share; a file lock for each."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forked import FORKS

from lkv.distributed import gpu_lease
from lkv.errors import UserError
from lkv.model import device

ROOT = Path(__file__).resolve().parents[1]


def pretend(put, cards: int) -> None:  # type: ignore[no-untyped-def]
    """Makes torch see so many GPUs of 64 GiB."""
    put(torch.cuda, "is_available", lambda: True)
    put(torch.cuda, "device_count", lambda: cards)
    put(torch.cuda, "set_device", lambda index: None)
    facts = [SimpleNamespace(uuid=f"card-{i}", total_memory=64 << 30) for i in range(cards)]
    put(torch.cuda, "get_device_properties", lambda index: facts[getattr(index, "index", index)])


def lease_until_told(pipe, folder: str, cards: int, jobs: int) -> None:  # type: ignore[no-untyped-def]
    """What the other process does."""
    tempfile.tempdir = folder
    pretend(setattr, cards)
    pipe.send(gpu_lease.pick("cuda", jobs).index)
    pipe.recv()


def ends(process, pipe) -> None:  # type: ignore[no-untyped-def]
    if process.is_alive():
        pipe.send("end")
        process.join()


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Locks in a folder of their own; what this process leases is given back."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(gpu_lease, "_leases", [])
    monkeypatch.setattr(device, "_jobs", 1)
    others = []

    def beside(number: int, jobs: int) -> int:
        """Another process leases; says which GPU it got."""
        here, there = FORKS.Pipe()
        other = FORKS.Process(target=lease_until_told, args=(there, str(tmp_path), number, jobs))
        other.start()
        others.append((other, here))
        return here.recv()

    beside.others = others  # type: ignore[attr-defined]
    yield beside
    for other in others:
        ends(*other)
    for lease in gpu_lease._leases:
        lease.close()


def test_a_job_alone_gets_a_gpu_that_nobody_holds(cards, monkeypatch):
    pretend(monkeypatch.setattr, 2)
    assert cards(2, 1) == 0
    assert gpu_lease.pick("cuda").index == 1
    assert device.memory(torch.device("cuda", 1)) == 64 << 30
    with pytest.raises(UserError, match="all 2 GPUs are leased by other lkv jobs"):
        gpu_lease.pick("cuda")


def test_jobs_that_share_fill_the_gpus_evenly_and_count_on_their_share_of_memory(cards, monkeypatch):
    pretend(monkeypatch.setattr, 2)
    assert [cards(2, 2), cards(2, 2), cards(2, 2)] == [0, 1, 0]
    assert gpu_lease.pick("cuda", 2).index == 1
    assert device.memory(torch.device("cuda", 1)) == 32 << 30
    with pytest.raises(UserError, match="all 2 GPUs are leased"):
        gpu_lease.pick("cuda", 2)


def test_a_job_alone_waits_for_those_that_share_and_no_more_come(cards, monkeypatch):
    pretend(monkeypatch.setattr, 1)
    assert cards(1, 3) == 0
    said: list[str] = []

    def meanwhile(notice: str) -> None:
        said.append(notice)
        with pytest.raises(UserError, match="all 1 GPUs are leased"):
            gpu_lease.pick("cuda", 3)
        ends(*cards.others[0])

    assert gpu_lease.pick("cuda", notify=meanwhile).index == 0
    assert said == ["waiting for the jobs that share GPU 0"]
    with pytest.raises(UserError, match="all 1 GPUs are leased"):
        gpu_lease.pick("cuda", 3)


def test_jobs_that_share_and_jobs_alone_keep_off_each_others_gpu(cards, monkeypatch):
    pretend(monkeypatch.setattr, 2)
    assert cards(2, 4) == 0
    assert gpu_lease.pick("cuda").index == 1
    assert cards(2, 4) == 0
