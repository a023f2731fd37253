"""Several processes on one training step, or on the answers to its prompts, one a GPU: started by torchrun or
accelerate, which set RANK and WORLD_SIZE. Without them there is one process: nothing here does anything."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(days=1)  # for the slowest; a process that fails is torchrun's to notice


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
