"""Estimates what a study costs before it starts: jobs, prompts, tokens, GPU-hours, disk.

Prefill time is its floating-point operations (lkv/model/flops.py) at the rate measured on an H100. A decode
step is the sum of three times: launching the kernels, reading or multiplying by the weights (the longer of
the two), and reading the caches. For four models this is within 50 % of the measured steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lkv.model.shape import NUMBER, Shape
from lkv.registry import METHODS, described
from lkv.study import arms, jobs, models, schema
from lkv.study.cost import (
    ANSWERED,
    FLOPS,
    MTBENCH_QUESTIONS,
    MTBENCH_TOKENS,
    PROMPT_S,
    READ_BYTES_S,
    RECORD_BYTES,
    ROWS,
    TOKEN_BYTES,
    TOKENS_A_WORD,
    TRAINING_FLOPS,
    Stage,
    add_seconds,
    decode_seconds,
    judgements,
    model_shape,
    prefill_seconds,
    short_bytes,
    short_count,
    stage_columns,
    task_load,
    training_prompts,
)


def plan(config: Mapping[str, Any], root: Path = Path()) -> list[Stage]:
    """The stages of a checked study config, model by model."""
    return [stage for model in config["models"] for stage in _of_model(config, model, root)]


def lines(config: Mapping[str, Any], root: Path = Path()) -> list[str]:
    """The plan as text: a table, its sums, and what the estimate rests on."""
    stages = plan(config, root)
    head = ("model", "stage", "jobs", "prompts", "tokens read", "written", "GPU-hours", "disk")
    rows = [head, *(stage_columns(stage) for stage in stages)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    text = [
        "  ".join(
            c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    text.insert(1, "  ".join("-" * width for width in widths))
    known = [stage.hours for stage in stages if stage.hours is not None]
    weights = sum(
        NUMBER * shape.parameters for m in models.fetched_models(config) if (shape := model_shape(m, root))
    )
    judged = ""
    if jobs.judged(config):
        ratings = sum(stage.prompts for stage in stages if stage.name == jobs.MTBENCH)
        judged = f"; {short_count(judgements(config, ratings))} ratings asked of the judge"
    unknown = len(stages) - len(known)
    return [
        *text,
        "",
        f"total: {sum(stage.jobs for stage in stages):,} jobs, "
        f"{short_count(sum(stage.prompts for stage in stages))} prompts, "
        f"{short_count(sum(stage.read for stage in stages))} tokens read, "
        f"{short_count(sum(stage.written for stage in stages))} written, "
        f"{sum(known):,.1f} GPU-hours" + (f" and {unknown} stages of unknown shape" if unknown else "") + ", "
        f"{short_bytes(sum(stage.disk for stage in stages) + weights)} of disk, model weights included"
        f"{judged}",
        f"at {FLOPS / 1e12:.0f} TFLOP/s in prefill, {TRAINING_FLOPS / 1e12:.0f} in training and "
        f"{READ_BYTES_S / 1e12:.1f} TB/s in decoding (measured on one H100), answers at full length and "
        f"{1000 * PROMPT_S:.0f} ms more for each evaluated prompt; latency runs are not counted. "
        "LongBench's lengths are its mean words "
        f"× {TOKENS_A_WORD}, at most max_prompt; training prompts count half of max_tokens.",
    ]


def _of_model(config: Mapping[str, Any], model: str, root: Path) -> Iterator[Stage]:
    shape = model_shape(model, root)
    yield from _training(config, model, shape)
    methods = [name for name in models.methods(config, model) if name != "full"]
    limit = config["protocol"]["max_prompt"] or schema.model_spec(model, root)["max_prompt"]
    groups: dict[str, list[tuple[int, float, int]]] = {}  # benchmark: (samples, prompt tokens, new tokens)
    for job in jobs.evaluations(config):
        groups.setdefault(job.benchmark, []).append(task_load(config, job, limit))
    for benchmark, tasks in groups.items():
        yield _evaluation(model, benchmark, tasks, methods, jobs.budgets(config, benchmark), shape)
    if own := config["ablation"]:
        tasks = [task_load(config, job, limit) for job in jobs.ablated_evaluations(config)]
        tasks = [(min(n, own["samples"] or n), length, new) for n, length, new in tasks]
        yield _evaluation(
            model, "ablation", tasks, list(arms.arms(config)), own["budgets"] or config["budgets"], shape
        )
    if own := config.get(jobs.MTBENCH):
        turns = [(own["samples"] or MTBENCH_QUESTIONS, 2 * MTBENCH_TOKENS, 2 * own["max_new_tokens"])]
        budgets = jobs.budgets(config, jobs.MTBENCH)
        yield _evaluation(model, jobs.MTBENCH, turns, methods, budgets, shape)


def _training(config: Mapping[str, Any], model: str, shape: Shape | None) -> Iterator[Stage]:
    if model not in models.trained(config):
        return
    main = arms.main_arm(config)
    for arm in arms.trained_data(config):
        train, name = arms.arms(config)[arm], "responses" if arm == main else f"responses, {arm}"
        prompts, length = training_prompts(train)
        answer = train["response_tokens"]
        read = prompts * length
        batches, entries = prompts / ANSWERED, length + answer / 2
        answering = add_seconds(
            prefill_seconds(shape, length, prompts), decode_seconds(shape, answer, ANSWERED, entries, batches)
        )
        disk = 7 * (read + prompts * answer)
        yield Stage(model, name, 1, prompts, read, prompts * answer, answering, disk)
    for arm in arms.trained_arms(config):
        train, name = arms.arms(config)[arm], "train" if arm == main else f"train, {arm}"
        seen, (_, length) = train["steps"] * train["batch"], training_prompts(train)
        rows = train["response_tokens"] + 3 * train["tokens"]
        reading, looking = (prefill_seconds(shape, tokens, seen, TRAINING_FLOPS) for tokens in (length, rows))
        learning = add_seconds(reading, looking)
        yield Stage(model, name, 1, seen, seen * length, 0, learning, 30e6)


def _evaluation(
    model: str,
    name: str,
    tasks: Sequence[tuple[int, float, int]],
    methods: Sequence[str],
    budgets: Sequence[int],
    shape: Shape | None,
) -> Stage:
    cells = len(methods) * len(budgets)
    drafted = sum(described(method).drafted_tokens for method in methods if method in METHODS)
    together = max(1, ROWS // max(1, cells))  # prompts whose answers are decoded as one batch
    kept = sum(budgets) / max(1, len(budgets))
    seconds: float | None = 0.0
    for samples, length, new in tasks:
        batches = samples / together
        seconds = add_seconds(seconds, prefill_seconds(shape, length, samples))
        seconds = add_seconds(seconds, decode_seconds(shape, new + drafted, together, length, batches))
        seconds = add_seconds(seconds, decode_seconds(shape, new, together * cells, kept + new / 2, batches))
        seconds = add_seconds(seconds, PROMPT_S * samples)
    samples = sum(task[0] for task in tasks)
    written = sum(task[0] * task[2] for task in tasks) * (1 + cells)
    disk = samples * (1 + cells) * RECORD_BYTES + sum(TOKEN_BYTES * t[0] * t[1] for t in tasks)
    return Stage(
        model, name, len(tasks), samples, sum(t[0] * t[1] for t in tasks), written, seconds, disk
    )  # fmt: skip
