"""Several processes, one a GPU, share a training step or the answers to its prompts.

lkv.distributed.launch, torchrun or accelerate start them and set RANK and WORLD_SIZE. Without these variables
there is one process, which shares nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from lkv.distributed.launch import MEET, world
from lkv.errors import Lost

PATIENCE = timedelta(days=1)  # for the slowest; the launcher notices one that fails


@dataclass(frozen=True)
class Group:
    """This process's place among all of them."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """True for the process that writes files and shows progress bars."""
        return self.rank == 0

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each tensor by its sum over all processes, in place, in one message."""
        if self.world == 1:
            return
        tensors = list(tensors)
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _together():
            dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def wait(self) -> None:
        """Blocks until all processes have called it."""
        if self.world > 1:
            with _together():
                dist.barrier()


@contextmanager
def group(device: torch.device) -> Iterator[Group]:
    """Connects the processes that were started together: by NCCL on CUDA, gloo elsewhere."""
    if world() == 1:
        yield Group()
        return
    place = Group(int(os.environ["RANK"]), world())
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=os.environ.get(MEET, "env://"),
        rank=place.rank,
        world_size=place.world,
        timeout=PATIENCE,
    )
    yield place
    dist.destroy_process_group()  # not after an error: it may wait for the others, who wait for this process


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise Lost(f"lost the other processes: {error}") from error
