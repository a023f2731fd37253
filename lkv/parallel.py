"""Several processes on one training step, or on the answers to its prompts, one a GPU: started by `launch`,
or by torchrun or accelerate, which set RANK and WORLD_SIZE. Without them there is one that shares nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(days=1)  # with the slowest; one that fails is noticed by what started them


@dataclass(frozen=True)
class Group:
    """This process's place among all of them."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and draws bars."""
        return self.rank == 0

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Each tensor becomes its sum over all processes, in place; one message."""
        if self.world == 1:
            return
        tensors = list(tensors)
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def group(device: torch.device) -> Iterator[Group]:
    """Inside, processes that were started together can talk: by NCCL on CUDA, gloo elsewhere."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Group()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Group(dist.get_rank(), world)
    finally:
        dist.destroy_process_group()


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Runs `lkv ARGUMENTS` in so many processes that know each other; 0, or the exit code of one that failed.

    The first writes to this terminal. When one fails the others are ended, and what it said is shown.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = os.environ | {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if threads := env.get("OMP_NUM_THREADS", ""):
        env["OMP_NUM_THREADS"] = str(max(1, int(threads) // processes))
    command = [sys.executable, "-m", "lkv", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        said = [open(f"{folder}/{rank}", "w+") for rank in range(1, processes)]  # noqa: SIM115
        running = [
            subprocess.Popen(command, env=env | {"RANK": str(rank)}, stderr=stderr)
            for rank, stderr in enumerate([None, *said])
        ]
        try:
            while all(process.poll() in (None, 0) for process in running):
                if None not in (process.returncode for process in running):
                    break
                time.sleep(0.1)
        finally:
            for process in running:
                process.terminate()
            codes = [process.wait() for process in running]
        failed = next((rank for rank, code in enumerate(codes) if code > 0), None)
        if failed:
            said[failed - 1].seek(0)
            sys.stderr.write(said[failed - 1].read())
    return max(map(abs, codes)) if failed is None else codes[failed]
