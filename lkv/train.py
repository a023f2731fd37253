"""Training: arms, their schedule, the loop over batches, and what it is judged by on held-out prompts."""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from lkv import device as devices
from lkv.checks import check_training
from lkv.data.shards import Stored
from lkv.engine import look
from lkv.errors import UserError
from lkv.lookahead import TOKENS, LookaheadKV
from lkv.loss import Batch, Captured, batch_loss, gradient, prepare
from lkv.models import Loaded, shape_of
from lkv.observe import kl_divergence, top_recall
from lkv.parallel import Group
from lkv.records import TRAINING_COLUMNS, atomic_write, fingerprint, write_csv
from lkv.select import PLAIN, candidates
from lkv.theory import training_flop

READ_EVERY = 10  # steps between two looks at the KL, which waits for the device
MOST_TOKENS = 1 << 16  # of a batch on CUDA, worked on at once
RECALL_BUDGET = 128


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


@dataclass(frozen=True)
class Arm:
    """What is trained, beside data and schedule: how many tokens, what carries LoRA, by which loss, and from
    how many tokens of an answer at most.

    lora: all linears, q and k alone ("qk") or "none". The paper's: 32, all, KL (eq. 4). 32, none, MSE are the
    modules of Judge Q (AAAI 2026).
    """

    name: str = "main"
    tokens: int = TOKENS
    lora: str = "all"
    loss: str = "kl"
    response_tokens: int | None = None  # None: all that the data holds

    def taught(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """The prompt with as much of its response as this arm learns from."""
        return prompt | {"response": prompt["response"][: self.response_tokens]}

    def learned(self, tokens: int) -> int:
        """How many tokens of a response of so many it learns from."""
        return tokens if self.response_tokens is None else min(tokens, self.response_tokens)


class HeldOut(NamedTuple):
    """Of prompts that training never sees, means per prompt."""

    kl: float
    recall: float  # of the target's top RECALL_BUDGET entries, or a quarter of a short prompt's


@torch.no_grad()
def held_out(loaded: Loaded, adapter: LookaheadKV, prompts: Sequence[dict[str, Any]], batch: int) -> HeldOut:
    """How well the adapter predicts: what arms, rates and mixtures are chosen by."""
    if not prompts:
        return HeldOut(math.nan, math.nan)
    lengths, kl, recall = _lengths(prompts), 0.0, 0.0
    for part in _in_batches(range(len(prompts)), lengths, batch, _most_tokens(loaded)):
        prepared = prepare(loaded, [prompts[i] for i in part])
        prediction = look(prepared.prefilled, adapter.tail(len(part)))
        budget = min(RECALL_BUDGET, lengths[part[0]] // 4)
        heads = prepared.prefilled.kv_heads
        tops = [
            [scores.topk(budget, -1).indices for scores in candidates(seen, PLAIN, heads)]
            for seen in (prediction, prepared.target)
        ]
        for target, predicted, found, best in zip(prepared.target, prediction, *tops, strict=True):
            kl += float(kl_divergence(target, predicted).mean()) * len(part)
            recall += float(top_recall(found, best).mean()) * len(part)
    layers = len(prepared.target)
    return HeldOut(kl / layers / len(prompts), recall / layers / len(prompts))


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
    rows, seconds, before = _resume(checkpoint, run, adapter, optimizer)
    if before is None:
        before = held_out(loaded, adapter, kept_back, schedule.batch).kl
    lengths, answers = _lengths(prompts), _answers(prompts)
    batches = _full_batches(range(trained), lengths, schedule.batch, Random(schedule.seed))
    order = _epochs(len(batches), Random(schedule.seed), schedule.steps)
    kept: dict[tuple[int, ...], Batch] = {}
    kept_bytes = 0
    captured = Captured(loaded, adapter, arm.loss) if fused else None
    shape, peak = shape_of(loaded.model), devices.peak_flops(loaded.model.device)
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
            for part in _in_batches(mine, lengths, schedule.batch, _most_tokens(loaded)):
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
                _save(checkpoint, run, adapter, optimizer, rows, seconds, before)
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


def _most_tokens(loaded: Loaded) -> int | None:
    """Tokens of a batch that are worked on at once: what a GPU's memory holds of a small model's."""
    return MOST_TOKENS if loaded.model.device.type == "cuda" else None


def _lengths(prompts: Sequence[dict[str, Any]]) -> Sequence[int]:
    return prompts.lengths if isinstance(prompts, Stored) else [prompt["length"] for prompt in prompts]


def _answers(prompts: Sequence[dict[str, Any]]) -> Sequence[int]:
    return prompts.answers if isinstance(prompts, Stored) else [len(prompt["response"]) for prompt in prompts]


def _in_batches(
    indices: Sequence[int], lengths: Sequence[int], size: int, most_tokens: int | None = None
) -> Iterator[list[int]]:
    """Batches of one length, in order; the last of each length may be smaller."""
    for length, group in groupby(sorted(indices, key=lengths.__getitem__), key=lengths.__getitem__):
        same = list(group)
        step = size if most_tokens is None else max(1, min(size, most_tokens // max(1, length)))
        for start in range(0, len(same), step):
            yield same[start : start + step]


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
    content = whole.getvalue()
    with atomic_write(path, "wb") as stream:
        stream.write(content + hashlib.sha256(content).digest())


def _resume(
    path: Path, run: str, adapter: LookaheadKV, optimizer: torch.optim.Optimizer
) -> tuple[list[dict[str, Any]], float, float | None]:
    """(rows so far, seconds, held-out KL at the start) from a checkpoint of this very run, else nothing."""
    if not path.is_file():
        return [], 0.0, None
    content = path.read_bytes()
    content, digest = content[:-32], content[-32:]
    if hashlib.sha256(content).digest() != digest:
        raise UserError(f"{path} is damaged, or of an earlier lkv; delete it to start anew")
    try:
        state = torch.load(io.BytesIO(content), weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is not a checkpoint ({reason}); delete it to start anew") from None
    if state.get("run") != run:
        return [], 0.0, None
    adapter.load_state_dict(state["adapter"])
    optimizer.load_state_dict(state["optimizer"])
    return state["rows"], state["seconds"], state["before"]
