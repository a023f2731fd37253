"""Training: from prompts with answers to a trained adapter, with checkpoints and held-out measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lkv.data.shards import Stored
from lkv.distributed.group import Group
from lkv.files.json_files import fingerprint
from lkv.lookahead.adapter import LookaheadKV
from lkv.lookahead.arm import Arm, Schedule, check_training
from lkv.lookahead.checkpoint import resume, save_checkpoint
from lkv.lookahead.held_out import HeldOut, held_out
from lkv.lookahead.step import Steps, check_finite
from lkv.model.load import Loaded
from lkv.results.columns import TRAINING_COLUMNS
from lkv.results.csv_files import write_csv

READ_EVERY = 10  # steps between two readings of the losses, which wait for the device


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
    run = fingerprint(
        version,
        loaded.fingerprint,
        loaded.dtype,
        loaded.model.device.type,
        prompts.sha256 if isinstance(prompts, Stored) else [prompts[:trained], kept_back],
        asdict(schedule),
        asdict(arm),
    )
    steps = Steps(loaded, prompts, adapter, schedule, arm, group, keep_bytes)
    checkpoint = out / "checkpoint.pt"
    rows, seconds, before = resume(checkpoint, run, adapter, steps.optimizer)
    if before is None:
        before = held_out(loaded, adapter, kept_back, schedule.batch).kl
    shown = None if group.first else True
    steps.start(seconds)
    with tqdm(
        total=schedule.steps, initial=len(rows), desc=f"train {arm.name}", unit="step", disable=shown
    ) as bar:
        for step in range(len(rows), schedule.steps):
            rows.append(steps.take(step, rows))
            last, due = step + 1 == schedule.steps, (step + 1) % checkpoint_every == 0
            if last or due or (step + 1) % READ_EVERY == 0:
                steps.read_losses(rows)
                bar.set_postfix(kl=f"{rows[-1]['kl']:.3f}", refresh=False)
            bar.update()
            if due and not last and group.first:
                save_checkpoint(checkpoint, run, adapter, steps.optimizer, rows, steps.seconds, before)
    after = held_out(loaded, adapter, kept_back, schedule.batch)
    check_finite(after.kl if kept_back else 0.0, schedule.steps, schedule)
    if group.first:
        write_csv(csv, rows, TRAINING_COLUMNS)
        adapter.save_pretrained(out, **_measured(arm, schedule, rows, before, after), **provenance)
        checkpoint.unlink(missing_ok=True)
    return adapter


def _measured(
    arm: Arm, schedule: Schedule, rows: Sequence[dict[str, Any]], before: float, after: HeldOut
) -> dict[str, Any]:
    """What the adapter's card says of its training."""
    first, end = rows[: max(1, len(rows) // 10)], rows[-max(1, len(rows) // 10) :]
    return {
        "arm": arm.name,
        "lora": arm.lora,
        "loss": arm.loss,
        "steps": schedule.steps,
        "samples": schedule.steps * schedule.batch,
        "schedule": asdict(schedule),
        "kl_first": round(sum(r["kl"] for r in first) / len(first), 5),
        "kl_last": round(sum(r["kl"] for r in end) / len(end), 5),
        "held_out_kl_before": _rounded(before),
        "held_out_kl_after": _rounded(after.kl),
        "held_out_recall": _rounded(after.recall),
    }


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 5)
