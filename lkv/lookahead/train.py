"""Training: arms, their schedule, the loop over batches, and what it is judged by on held-out prompts."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lkv.data.shards import Stored
from lkv.distributed.group import Group
from lkv.errors import UserError
from lkv.files.json_files import fingerprint
from lkv.lookahead.adapter import LookaheadKV
from lkv.lookahead.arm import Arm, Schedule, check_training
from lkv.lookahead.batches import answers_of, epochs, full_batches, in_batches, largest_batch, lengths_of
from lkv.lookahead.checkpoint import resume, save_checkpoint
from lkv.lookahead.held_out import held_out
from lkv.lookahead.loss import Batch, Captured, batch_loss, gradient, prepare
from lkv.model import device
from lkv.model.flops import training_flop
from lkv.model.load import Loaded
from lkv.model.shape import shape_of
from lkv.results.columns import TRAINING_COLUMNS
from lkv.results.csv_files import write_csv

READ_EVERY = 10  # steps between two looks at the KL, which waits for the device


def train(
    loaded: Loaded,
    prompts: Sequence[dict[str, Any]],
    schedule: Schedule,
    arm: Arm,
    out: Path,
    csv: Path,
    provenance: dict[str, Any],
    keep_bytes: int = 0,
    checkpoint_every: int = 25,
    version: int = 1,
    group: Group | None = None,
) -> LookaheadKV:
    """Trains an adapter into folder `out`, a row a step into `csv`; goes on from `out`/checkpoint.pt if any.

    A run that was stopped and resumed gives the same adapter, bit for bit on the CPU. Up to `keep_bytes` of
    prepared batches stay in memory from one epoch to the next: on a CPU the prefill is most of a step.
    Prompts of a lkv.data.shards.Stored are read when they are needed, and never all in memory. The processes
    of a `group` share each step's prompts; the first writes.
    """
    check_training(len(prompts), schedule.held_out, schedule.batch)
    group = group or Group()
    trained = len(prompts) - schedule.held_out
    kept_back = [arm.taught(prompt) for prompt in prompts[trained:]]
    adapter = LookaheadKV.create(loaded.model, arm.tokens, seed=schedule.seed, lora=arm.lora)
    fused = loaded.model.device.type == "cuda"
    optimizer = torch.optim.Adam(adapter.parameters(), lr=schedule.learning_rate, fused=fused)
    run = fingerprint(
        version,
        loaded.fingerprint,
        loaded.dtype,
        loaded.model.device.type,
        prompts.sha256 if isinstance(prompts, Stored) else [prompts[:trained], kept_back],
        asdict(schedule),
        asdict(arm),
    )
    checkpoint = out / "checkpoint.pt"
    rows, seconds, before = resume(checkpoint, run, adapter, optimizer)
    if before is None:
        before = held_out(loaded, adapter, kept_back, schedule.batch).kl
    lengths, answers = lengths_of(prompts), answers_of(prompts)
    batches = full_batches(range(trained), lengths, schedule.batch, Random(schedule.seed))
    order = epochs(len(batches), Random(schedule.seed), schedule.steps)
    kept: dict[tuple[int, ...], Batch] = {}
    kept_bytes = 0
    captured = Captured(loaded, adapter, arm.loss) if fused else None
    shape, peak = shape_of(loaded.model), device.peak_flops(loaded.model.device)
    steps: list[Tensor] = []  # each step's KL, on the device: reading it would wait for the step
    clock = time.perf_counter()
    bar = tqdm(
        total=schedule.steps,
        initial=len(rows),
        desc=f"train {arm.name}",
        unit="step",
        disable=None if group.first else True,
    )
    with bar:
        for step in range(len(rows), schedule.steps):
            rate = schedule.rate(step)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad(set_to_none=not fused)
            kl = torch.zeros([], device=loaded.model.device)
            together, flop = batches[order[step]], 0.0
            tokens = sum(lengths[i] + arm.learned(answers[i]) + adapter.n for i in together)
            mine = together[group.rank :: group.world]
            for part in in_batches(mine, lengths, schedule.batch, largest_batch(loaded)):
                given, weight = [arm.taught(prompts[i]) for i in part], len(part) / schedule.batch
                # One length at a time: the gradients add up to the batch's mean.
                if captured is not None:
                    kl += captured(given, weight)
                else:
                    batch = kept.get(tuple(part)) or prepare(loaded, given)
                    if tuple(part) not in kept and kept_bytes + batch.bytes <= keep_bytes:
                        kept[tuple(part)] = batch
                        kept_bytes += batch.bytes
                    loss, own = batch_loss(adapter, batch, arm.loss)
                    (loss * weight).backward()
                    kl += own * weight
                longest = max(len(prompt["response"]) for prompt in given)
                flop += len(part) * training_flop(shape, lengths[part[0]], longest, adapter.n)
            group.sum([kl, *(gradient(parameter) for parameter in adapter.parameters())])
            torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
            optimizer.step()
            steps.append(kl)
            now = time.perf_counter()
            seconds, clock = seconds + now - clock, now
            facts = (rate, tokens, flop, seconds, rows, peak)
            rows.append(_row(loaded.name, arm.name, step, schedule, *facts))
            last = step + 1 == schedule.steps
            if last or (step + 1) % READ_EVERY == 0 or (step + 1) % checkpoint_every == 0:
                for row, value in zip(rows[len(rows) - len(steps) :], steps, strict=True):
                    row["kl"] = float(value)
                    _check_finite(row["kl"], row["step"], schedule)
                steps.clear()
                if not all(bool(parameter.isfinite().all()) for parameter in adapter.parameters()):
                    _check_finite(math.nan, step + 1, schedule)
                bar.set_postfix(kl=f"{rows[-1]['kl']:.3f}", refresh=False)
            bar.update()
            if (step + 1) % checkpoint_every == 0 and not last and group.first:
                save_checkpoint(checkpoint, run, adapter, optimizer, rows, seconds, before)
    after = held_out(loaded, adapter, kept_back, schedule.batch)
    _check_finite(after.kl if kept_back else 0.0, schedule.steps, schedule)
    if not group.first:
        return adapter
    first, end = rows[: max(1, len(rows) // 10)], rows[-max(1, len(rows) // 10) :]
    write_csv(csv, rows, TRAINING_COLUMNS)
    adapter.save_pretrained(
        out,
        arm=arm.name,
        lora=arm.lora,
        loss=arm.loss,
        steps=schedule.steps,
        samples=schedule.steps * schedule.batch,
        schedule=asdict(schedule),
        kl_first=round(sum(r["kl"] for r in first) / len(first), 5),
        kl_last=round(sum(r["kl"] for r in end) / len(end), 5),
        held_out_kl_before=_rounded(before),
        held_out_kl_after=_rounded(after.kl),
        held_out_recall=_rounded(after.recall),
        **provenance,
    )
    checkpoint.unlink(missing_ok=True)
    return adapter


def _check_finite(kl: float, step: int, schedule: Schedule) -> None:
    """Modules that are no numbers would be stored, and scored, like any others."""
    if not math.isfinite(kl):
        raise UserError(
            f"training diverged: at step {step} loss or modules are no numbers; give a learning rate below "
            f"{schedule.learning_rate:g}, or more warm-up steps"
        )


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 5)


def _row(
    model: str, arm: str, step: int, schedule: Schedule, rate: float, tokens: int, flop: float,
    seconds: float, rows: list[dict[str, Any]], peak: float | None,
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
