"""Training: the KL between what the model's own answer looks at and what the lookahead tokens predict.

No activation of the prompt depends on a trainable parameter, so one prefill without gradient serves both: the
answer's pass gives the target (eq. 1), the lookahead tokens' pass the prediction (eq. 2-3), and the gradient
runs through the n lookahead rows alone. Its equality with autograd through the whole sequence is a test.
"""

from __future__ import annotations

import io
import math
import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lkv.cache import stored_bytes
from lkv.data.shards import Stored
from lkv.engine import Prefilled, answer_tail, look, prefill
from lkv.errors import UserError
from lkv.interface import Importance
from lkv.lookahead import LookaheadKV
from lkv.models import Loaded
from lkv.observe import kl_divergence
from lkv.records import TRAINING_COLUMNS, atomic_write, fingerprint, write_csv


@dataclass(frozen=True)
class Schedule:
    """Adam with a linear warm-up and a cosine to zero, gradients clipped at norm 1.

    The paper's batch is 32, its rate 1e-3 (LLaMA) or 2e-4 (Qwen3); its schedule is not reported.
    """

    steps: int
    batch: int
    learning_rate: float
    warmup_steps: int
    held_out: int
    seed: int

    def rate(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts of one length after all that no trainable parameter touches: their cache and target."""

    prefilled: Prefilled
    target: Importance

    @property
    def bytes(self) -> int:
        return stored_bytes(self.prefilled.cache) + sum(t.numel() * 4 for t in self.target)


def prepare(loaded: Loaded, prompts: Sequence[dict[str, Any]]) -> Batch:
    """Prefill and target importance of prompts of one length, from their stored responses."""
    ids = torch.tensor([prompt["ids"] for prompt in prompts], device=loaded.model.device)
    prefilled, _ = prefill(loaded.model, ids)
    prefilled.answers = [prompt["response"] for prompt in prompts]
    with torch.no_grad():
        return Batch(prefilled, look(prefilled, answer_tail(prefilled)))


def batch_loss(adapter: LookaheadKV, batch: Batch) -> Tensor:
    """Mean over layers, query heads and prompts of KL(target ‖ prediction); scalar, in nats."""
    tail = adapter.tail(batch.prefilled.model, len(batch.prefilled.first))
    prediction = look(batch.prefilled, tail)
    layers = [kl_divergence(t, p).mean() for t, p in zip(batch.target, prediction, strict=True)]
    return torch.stack(layers).mean()


@torch.no_grad()
def held_out_kl(loaded: Loaded, adapter: LookaheadKV, prompts: Sequence[dict[str, Any]], batch: int) -> float:
    """Mean KL per prompt over prompts that training never sees."""
    if not prompts:
        return math.nan
    lengths, total = _lengths(prompts), 0.0
    for part in _in_batches(range(len(prompts)), lengths, batch):
        loss = batch_loss(adapter, prepare(loaded, [prompts[i] for i in part]))
        total += float(loss) * len(part)
    return total / len(prompts)


def train(
    loaded: Loaded,
    prompts: Sequence[dict[str, Any]],
    schedule: Schedule,
    arm: str,
    out: Path,
    csv: Path,
    provenance: dict[str, Any],
    keep_bytes: int = 0,
    checkpoint_every: int = 25,
    version: int = 1,
) -> LookaheadKV:
    """Trains an adapter into folder `out`, a row a step into `csv`; goes on from `out`/checkpoint.pt if any.

    A run that was stopped and resumed gives the same adapter, bit for bit on the CPU. Up to `keep_bytes` of
    prepared batches stay in memory from one epoch to the next: on a CPU the prefill is most of a step.
    Prompts of a lkv.data.shards.Stored are read when they are needed, and never all in memory.
    """
    if len(prompts) - schedule.held_out < schedule.batch:
        raise UserError(
            f"{len(prompts)} prompts less {schedule.held_out} held out do not fill a batch of "
            f"{schedule.batch}; give more samples or a smaller batch"
        )
    trained = len(prompts) - schedule.held_out
    held_out = prompts[trained:]
    adapter = LookaheadKV.create(loaded.model, seed=schedule.seed)
    optimizer = torch.optim.Adam(adapter.parameters(), lr=schedule.learning_rate)
    run = fingerprint(
        version,
        loaded.fingerprint,
        loaded.dtype,
        loaded.model.device.type,
        prompts.sha256 if isinstance(prompts, Stored) else [prompts[:trained], held_out],
        asdict(schedule),
        arm,
    )
    checkpoint = out / "checkpoint.pt"
    rows, seconds, before = _resume(checkpoint, run, adapter, optimizer)
    if before is None:
        before = held_out_kl(loaded, adapter, held_out, schedule.batch)
    lengths = _lengths(prompts)
    batches = _full_batches(range(trained), lengths, schedule.batch, Random(schedule.seed))
    order = _epochs(len(batches), Random(schedule.seed), schedule.steps)
    kept: dict[tuple[int, ...], Batch] = {}
    kept_bytes = 0
    clock = time.perf_counter()
    with tqdm(total=schedule.steps, initial=len(rows), desc=f"train {arm}", unit="step") as bar:
        for step in range(len(rows), schedule.steps):
            rate = schedule.rate(step)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            kl, tokens = 0.0, 0
            for part in _in_batches(batches[order[step]], lengths, schedule.batch):
                batch = kept.get(tuple(part))
                if batch is None:
                    batch = prepare(loaded, [prompts[i] for i in part])
                    if kept_bytes + batch.bytes <= keep_bytes:
                        kept[tuple(part)] = batch
                        kept_bytes += batch.bytes
                loss = batch_loss(adapter, batch) * (len(part) / schedule.batch)
                loss.backward()  # one length at a time: the gradients add up to the batch's mean
                kl += float(loss.detach())
                tokens += sum(lengths[i] for i in part) + sum(map(len, batch.prefilled.answers))
            tokens += schedule.batch * adapter.n
            torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
            optimizer.step()
            now = time.perf_counter()
            seconds, clock = seconds + now - clock, now
            rows.append(_row(loaded.name, arm, step, schedule, kl, rate, tokens, seconds, rows))
            bar.set_postfix(kl=f"{rows[-1]['kl']:.3f}", refresh=False)
            bar.update()
            if (step + 1) % checkpoint_every == 0 and step + 1 < schedule.steps:
                _save(checkpoint, run, adapter, optimizer, rows, seconds, before)
    after = held_out_kl(loaded, adapter, held_out, schedule.batch)
    first, last = rows[: max(1, len(rows) // 10)], rows[-max(1, len(rows) // 10) :]
    write_csv(csv, rows, TRAINING_COLUMNS)
    adapter.save_pretrained(
        out,
        arm=arm,
        steps=schedule.steps,
        samples=schedule.steps * schedule.batch,
        schedule=asdict(schedule),
        kl_first=round(sum(r["kl"] for r in first) / len(first), 5),
        kl_last=round(sum(r["kl"] for r in last) / len(last), 5),
        held_out_kl_before=_rounded(before),
        held_out_kl_after=_rounded(after),
        **provenance,
    )
    checkpoint.unlink(missing_ok=True)
    return adapter


def _rounded(kl: float) -> float | None:
    return None if math.isnan(kl) else round(kl, 5)


def _row(
    model: str, arm: str, step: int, schedule: Schedule, kl: float, rate: float, tokens: int, seconds: float,
    rows: list[dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    total = tokens + (rows[-1]["tokens"] if rows else 0)
    return {
        "model": model,
        "arm": arm,
        "step": step + 1,
        "samples": (step + 1) * schedule.batch,
        "kl": kl,
        "lr": rate,
        "tokens": total,
        "seconds": seconds,
        "tokens_per_s": total / seconds,
        "mfu": None,
    }


def _lengths(prompts: Sequence[dict[str, Any]]) -> Sequence[int]:
    return prompts.lengths if isinstance(prompts, Stored) else [prompt["length"] for prompt in prompts]


def _in_batches(indices: Sequence[int], lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Batches of one length, in order; the last of each length may be smaller."""
    for _, group in groupby(sorted(indices, key=lengths.__getitem__), key=lengths.__getitem__):
        same = list(group)
        for start in range(0, len(same), size):
            yield same[start : start + size]


def _full_batches(indices: Sequence[int], lengths: Sequence[int], size: int, rng: Random) -> list[list[int]]:
    """Batches of exactly `size` prompts, drawn once; what fills no batch is left out.

    Of one length where lengths were chosen; of any lengths where they are natural, too many to fill batches.
    """
    shuffled = rng.sample(indices, k=len(indices))
    if len({lengths[i] for i in indices}) * size > len(indices):
        return [shuffled[start : start + size] for start in range(0, len(indices) - size + 1, size)]
    batches = [batch for batch in _in_batches(shuffled, lengths, size) if len(batch) == size]
    if not batches:
        raise UserError(f"no length has {size} training prompts; give more samples or a smaller batch")
    return batches


def _epochs(batches: int, rng: Random, steps: int) -> list[int]:
    """Which batch each step takes: epoch after epoch, each in a new order."""
    order: list[int] = []
    while len(order) < steps:
        order += rng.sample(range(batches), k=batches)
    return order[:steps]


def _save(
    path: Path, run: str, adapter: LookaheadKV, optimizer: torch.optim.Optimizer, rows: list[dict[str, Any]],
    seconds: float, before: float,
) -> None:  # fmt: skip
    state = {
        "run": run,
        "adapter": adapter.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rows": rows,
        "seconds": seconds,
        "before": before,
    }
    whole = io.BytesIO()  # a full disk shows as an OSError of the write, not as an error of torch's
    torch.save(state, whole)
    with atomic_write(path, "wb") as stream:
        stream.write(whole.getvalue())


def _resume(
    path: Path, run: str, adapter: LookaheadKV, optimizer: torch.optim.Optimizer
) -> tuple[list[dict[str, Any]], float, float | None]:
    """(rows so far, seconds, held-out KL at the start) from a checkpoint of this very run, else nothing."""
    if not path.is_file():
        return [], 0.0, None
    try:
        state = torch.load(path, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is not a checkpoint ({reason}); delete it to start anew") from None
    if state.get("run") != run:
        return [], 0.0, None
    adapter.load_state_dict(state["adapter"])
    optimizer.load_state_dict(state["optimizer"])
    return state["rows"], state["seconds"], state["before"]
