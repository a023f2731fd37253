"""One training step: the loss of a batch in parts of one length, its gradient, and the optimizer."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor

from lkv.distributed.group import Group
from lkv.errors import UserError
from lkv.lookahead.adapter import LookaheadKV
from lkv.lookahead.arm import Arm, Schedule
from lkv.lookahead.batches import answers_of, epochs, full_batches, in_batches, largest_batch, lengths_of
from lkv.lookahead.loss import Batch, Captured, batch_loss, gradient, prepare
from lkv.model import device
from lkv.model.flops import training_flop
from lkv.model.load import Loaded
from lkv.model.shape import shape_of


class Steps:
    """The steps of one training, in the order that its seed draws.

    `seconds` sums what they took. Prepared batches of up to `keep_bytes` stay in memory (not on CUDA, where
    passes are captured instead).
    """

    def __init__(
        self,
        loaded: Loaded,
        prompts: Sequence[dict[str, Any]],
        adapter: LookaheadKV,
        schedule: Schedule,
        arm: Arm,
        group: Group,
        keep_bytes: int,
    ) -> None:
        self.loaded, self.prompts, self.adapter = loaded, prompts, adapter
        self.schedule, self.arm, self.group, self.keep_bytes = schedule, arm, group, keep_bytes
        self.on_cuda = loaded.model.device.type == "cuda"
        self.optimizer = torch.optim.Adam(adapter.parameters(), lr=schedule.learning_rate, fused=self.on_cuda)
        self.lengths, self.answers = lengths_of(prompts), answers_of(prompts)
        trained = range(len(prompts) - schedule.held_out)
        self.batches = full_batches(trained, self.lengths, schedule.batch, Random(schedule.seed))
        self.order = epochs(len(self.batches), Random(schedule.seed), schedule.steps)
        self.captured = Captured(loaded, adapter, arm.loss) if self.on_cuda else None
        self.kept: dict[tuple[int, ...], Batch] = {}
        self.kept_bytes = 0
        self.shape, self.peak = shape_of(loaded.model), device.peak_flops(loaded.model.device)
        self.losses: list[Tensor] = []  # on the device: reading one would wait for its step
        self.seconds = 0.0
        self.clock = time.perf_counter()

    def start(self, seconds: float) -> None:
        """Starts the clock, at what the steps of an earlier run took."""
        self.seconds, self.clock = seconds, time.perf_counter()

    def take(self, step: int, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Takes a step; returns its row, whose KL is still to come (`read_losses`)."""
        rate = self.schedule.rate(step)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.zero_grad(set_to_none=not self.on_cuda)
        batch, flop = self.batches[self.order[step]], 0.0
        tokens = sum(self.lengths[i] + self.arm.learned(self.answers[i]) + self.adapter.n for i in batch)
        kl = torch.zeros([], device=self.loaded.model.device)
        mine = batch[self.group.rank :: self.group.world]
        # One length at a time: the gradients add up to the batch's mean.
        for part in in_batches(mine, self.lengths, self.schedule.batch, largest_batch(self.loaded)):
            given = [self.arm.taught(self.prompts[i]) for i in part]
            kl += self._learn(part, given)
            longest = max(len(prompt["response"]) for prompt in given)
            flop += len(part) * training_flop(self.shape, self.lengths[part[0]], longest, self.adapter.n)
        self.group.sum([kl, *(gradient(parameter) for parameter in self.adapter.parameters())])
        torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), 1.0)
        self.optimizer.step()
        self.losses.append(kl)
        now = time.perf_counter()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        facts = (rate, tokens, flop, self.seconds, rows, self.peak)
        return _row(self.loaded.name, self.arm.name, step, self.schedule, *facts)

    def _learn(self, part: Sequence[int], given: Sequence[dict[str, Any]]) -> Tensor:
        """Adds the gradient of prompts of one length; returns their share of the batch's KL."""
        weight = len(part) / self.schedule.batch
        if self.captured is not None:
            return self.captured(given, weight)
        batch = self.kept.get(tuple(part)) or prepare(self.loaded, given)
        if tuple(part) not in self.kept and self.kept_bytes + batch.bytes <= self.keep_bytes:
            self.kept[tuple(part)] = batch
            self.kept_bytes += batch.bytes
        loss, kl = batch_loss(self.adapter, batch, self.arm.loss)
        (loss * weight).backward()
        return kl * weight

    def read_losses(self, rows: Sequence[dict[str, Any]]) -> None:
        """Writes the KL into the rows of the steps since the last reading.

        Raises UserError where the training diverged.
        """
        for row, value in zip(rows[len(rows) - len(self.losses) :], self.losses, strict=True):
            row["kl"] = float(value)
            check_finite(row["kl"], row["step"], self.schedule)
        self.losses.clear()
        if not all(bool(parameter.isfinite().all()) for parameter in self.adapter.parameters()):
            check_finite(math.nan, rows[-1]["step"], self.schedule)


def check_finite(kl: float, step: int, schedule: Schedule) -> None:
    """Raises UserError unless the loss is a number: modules that are none would be stored and scored."""
    if not math.isfinite(kl):
        raise UserError(
            f"training diverged: at step {step} loss or modules are no numbers; give a learning rate below "
            f"{schedule.learning_rate:g}, or more warm-up steps"
        )


def _row(
    model: str, arm: str, step: int, schedule: Schedule, rate: float, tokens: int, flop: float,
    seconds: float, rows: Sequence[dict[str, Any]], peak: float | None,
) -> dict[str, Any]:  # fmt: skip
    """A step's row, its KL still to come. Tokens (of all processes), seconds and their rates are sums since
    the start; MFU is that of the first process's GPU."""
    total = tokens + (rows[-1]["tokens"] if rows else 0)
    done = flop + (rows[-1]["flop"] if rows else 0)
    return {
        "model": model,
        "arm": arm,
        "step": step + 1,
        "samples": (step + 1) * schedule.batch,
        "kl": math.nan,
        "lr": rate,
        "tokens": total,
        "seconds": seconds,
        "tokens_per_s": total / seconds,
        "mfu": None if peak is None else done / seconds / peak,
        "flop": done,
    }
