"""What a study will cost, before it starts: jobs, prompts, tokens, GPU-hours, disk. An estimate.

Prefill costs its floating-point operations (lkv/theory.py) at the rate measured on an H100. A decode step is
the launch of its kernels, the longer of reading the weights and multiplying by them, and the reading of its
rows' caches: within a half of the measured steps of four models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lkv import study
from lkv.bench import longbench, longproc, ruler
from lkv.theory import NUMBER, Shape, prefill_flop

FLOPS = 6.2e14  # prefill of an 8B shape in bfloat16, 8K to 32K tokens: 210 and 1,206 ms on one H100
TRAINING_FLOPS = 1.8e14  # SmolLM2, on the same machine (training.csv); larger models do better
READ_BYTES_S = 2.7e12
LAYER_S = 3e-5  # of a decode step's kernels, whatever they do
PROMPT_S = 0.1  # of an evaluated prompt beside prefill and decoding; SmolLM2, 55 cells
ROWS = 512  # decoded at once
ANSWERED = 128  # prompts whose training answers are
TOKEN_BYTES = 4.5  # of text a token; ids in JSON take about 7
RECORD_BYTES = 1200  # a journal's line and a sample's row

# Mean number of words of LongBench's contexts, counted over its published prediction files.
WORDS = {
    "narrativeqa": 18405, "qasper": 3619, "multifieldqa_en": 4559, "hotpotqa": 9149, "2wikimqa": 4885,
    "musique": 11018, "gov_report": 8169, "qmsum": 10546, "multi_news": 2113, "trec": 5176, "triviaqa": 8209,
    "samsum": 6258, "passage_count": 11141, "passage_retrieval_en": 9288, "lcc": 1235, "repobench-p": 4206,
}  # fmt: skip
TOKENS_A_WORD = 1.4
LONGPROC_TOKENS = {"html_to_tsv_0.5k": 12_000, "html_to_tsv_2k": 23_000, "html_to_tsv_8k": 45_000}
MTBENCH_QUESTIONS, MTBENCH_TOKENS = 80, 100  # a turn's question, template counted in


@dataclass(frozen=True)
class Stage:
    """One line of the plan. Tokens are those read (prompts) and those written."""

    model: str
    name: str
    jobs: int
    prompts: int
    read: float
    written: float
    seconds: float | None  # None: the model's shape is unknown
    disk: float

    @property
    def hours(self) -> float | None:
        return None if self.seconds is None else self.seconds / 3600


def plan(config: Mapping[str, Any], root: Path = Path()) -> list[Stage]:
    """The stages of a checked study config, model by model."""
    return [stage for model in config["models"] for stage in _of_model(config, model, root)]


def lines(config: Mapping[str, Any], root: Path = Path()) -> list[str]:
    """The plan as text: a table, its sums, and what the estimate rests on."""
    stages = plan(config, root)
    head = ("model", "stage", "jobs", "prompts", "tokens read", "written", "GPU-hours", "disk")
    rows = [head, *(_cells(stage) for stage in stages)]
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
        NUMBER * shape.parameters for m in study.fetched_models(config) if (shape := _shape(m, root))
    )
    judged = ""
    if study.judged(config):
        ratings = sum(stage.prompts for stage in stages if stage.name == study.MTBENCH)
        judged = f"; {_count(_judgements(config, ratings))} ratings asked of the judge"
    unknown = len(stages) - len(known)
    return [
        *text,
        "",
        f"total: {sum(stage.jobs for stage in stages):,} jobs, "
        f"{_count(sum(stage.prompts for stage in stages))} prompts, "
        f"{_count(sum(stage.read for stage in stages))} tokens read, "
        f"{_count(sum(stage.written for stage in stages))} written, "
        f"{sum(known):,.1f} GPU-hours" + (f" and {unknown} stages of unknown shape" if unknown else "") + ", "
        f"{_bytes(sum(stage.disk for stage in stages) + weights)} of disk, model weights included{judged}",
        f"at {FLOPS / 1e12:.0f} TFLOP/s in prefill, {TRAINING_FLOPS / 1e12:.0f} in training and "
        f"{READ_BYTES_S / 1e12:.1f} TB/s in decoding (measured on one H100), answers at full length and "
        f"{1000 * PROMPT_S:.0f} ms beside for each evaluated prompt; latency runs are not counted. "
        "LongBench's lengths are its mean words "
        f"× {TOKENS_A_WORD}, at most max_prompt; training prompts count half of max_tokens.",
    ]


def _of_model(config: Mapping[str, Any], model: str, root: Path) -> Iterator[Stage]:
    shape = _shape(model, root)
    yield from _training(config, model, shape)
    methods = [name for name in study.methods(config, model) if name != "full"]
    limit = config["protocol"]["max_prompt"] or study.model_spec(model, root)["max_prompt"]
    groups: dict[str, list[tuple[int, float, int]]] = {}  # benchmark: (samples, prompt tokens, new tokens)
    for cell in study.cells(config):
        groups.setdefault(cell.benchmark, []).append(_task(config, cell, limit))
    for benchmark, tasks in groups.items():
        yield _evaluation(model, benchmark, tasks, methods, study.budgets(config, benchmark), shape)
    if own := config["ablation"]:
        tasks = [_task(config, cell, limit) for cell in study.ablated(config)]
        tasks = [(min(n, own["samples"] or n), length, new) for n, length, new in tasks]
        arms = list(study.arms(config))
        yield _evaluation(model, "ablation", tasks, arms, own["budgets"] or config["budgets"], shape)
    if own := config.get(study.MTBENCH):
        turns = [(own["samples"] or MTBENCH_QUESTIONS, 2 * MTBENCH_TOKENS, 2 * own["max_new_tokens"])]
        budgets = study.budgets(config, study.MTBENCH)
        yield _evaluation(model, study.MTBENCH, turns, methods, budgets, shape)


def _training(config: Mapping[str, Any], model: str, shape: Shape | None) -> Iterator[Stage]:
    if model not in study.trained(config):
        return
    main = study.main_arm(config)
    for arm in study.trained_data(config):
        train, name = study.arms(config)[arm], "responses" if arm == main else f"responses, {arm}"
        prompts, length = _prompts(train)
        answer = train["response_tokens"]
        read = prompts * length
        batches, entries = prompts / ANSWERED, length + answer / 2
        answering = _add(_prefill(shape, length, prompts), _decode(shape, answer, ANSWERED, entries, batches))
        disk = 7 * (read + prompts * answer)
        yield Stage(model, name, 1, prompts, read, prompts * answer, answering, disk)
    for arm in study.trained_arms(config):
        train, name = study.arms(config)[arm], "train" if arm == main else f"train, {arm}"
        seen, (_, length) = train["steps"] * train["batch"], _prompts(train)
        rows = train["response_tokens"] + 3 * train["tokens"]
        reading, looking = (_prefill(shape, tokens, seen, TRAINING_FLOPS) for tokens in (length, rows))
        learning = _add(reading, looking)
        yield Stage(model, name, 1, seen, seen * length, 0, learning, 30e6)


def _prompts(train: Mapping[str, Any]) -> tuple[int, float]:
    """An arm's training prompts, and their mean length."""
    if train["sources"]:
        return sum(item["count"] for item in train["sources"]), train["max_tokens"] / 2
    return train["samples"], sum(train["lengths"]) / len(train["lengths"])


def _task(config: Mapping[str, Any], cell: study.Cell, limit: int | None) -> tuple[int, float, int]:
    own = config[cell.benchmark]
    cap = own.get("max_new_tokens")
    row: Any
    if cell.benchmark == "ruler":
        row = ruler.TASKS[cell.task]
        new = min(row.tokens, cap or row.tokens)
        return own["samples"], cell.length - new, new
    if cell.benchmark == "longbench":
        row, length = longbench.TASKS[cell.task], WORDS[cell.task] * TOKENS_A_WORD
        length = min(length, limit or length)
    else:
        row, length = longproc.TASKS[cell.task], LONGPROC_TOKENS[cell.task]
    return min(own["samples"] or row.samples, row.samples), length, min(row.tokens, cap or row.tokens)


def _evaluation(
    model: str,
    name: str,
    tasks: Sequence[tuple[int, float, int]],
    methods: Sequence[str],
    budgets: Sequence[int],
    shape: Shape | None,
) -> Stage:
    cells = len(methods) * len(budgets)
    drafts = sum(method in ("laq", "laqpp", "speckv") for method in methods)
    together = max(1, ROWS // max(1, cells))  # prompts whose answers are decoded as one batch
    kept = sum(budgets) / max(1, len(budgets))
    seconds: float | None = 0.0
    for samples, length, new in tasks:
        batches = samples / together
        seconds = _add(seconds, _prefill(shape, length, samples))
        seconds = _add(seconds, _decode(shape, new + 32 * drafts, together, length, batches))
        seconds = _add(seconds, _decode(shape, new, together * cells, kept + new / 2, batches))
        seconds = _add(seconds, PROMPT_S * samples)
    samples = sum(task[0] for task in tasks)
    written = sum(task[0] * task[2] for task in tasks) * (1 + cells)
    disk = samples * (1 + cells) * RECORD_BYTES + sum(TOKEN_BYTES * t[0] * t[1] for t in tasks)
    return Stage(
        model, name, len(tasks), samples, sum(t[0] * t[1] for t in tasks), written, seconds, disk
    )  # fmt: skip


def _shape(model: str, root: Path) -> Shape | None:
    shape = study.model_spec(model, root)["shape"]
    return None if shape is None else Shape(**shape)


def _prefill(shape: Shape | None, tokens: float, prompts: float, rate: float = FLOPS) -> float | None:
    """Seconds."""
    if shape is None:
        return None
    return prompts * prefill_flop(shape, tokens) / rate


def _decode(shape: Shape | None, steps: float, rows: int, entries: float, batches: float) -> float | None:
    """Seconds of `batches` times `steps` steps."""
    return None if shape is None else batches * steps * step_s(shape, rows, entries)


def step_s(shape: Shape, rows: int, entries: float) -> float:
    """Seconds of one decode step of `rows` rows with `entries` each."""
    weights = max(NUMBER * shape.parameters / READ_BYTES_S, 2 * shape.parameters * rows / FLOPS)
    return LAYER_S * shape.layers + weights + rows * entries * shape.entry_bytes / READ_BYTES_S


def _add(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


def _judgements(config: Mapping[str, Any], questions: int) -> int:
    methods = [name for name in config["methods"] if name != "full"]
    return 2 * questions * (1 + len(methods) * len(study.budgets(config, study.MTBENCH)))


def _cells(stage: Stage) -> tuple[str, ...]:
    hours = "unknown" if stage.hours is None else f"{stage.hours:,.2f}"
    return (
        stage.model, stage.name, f"{stage.jobs:,}", _count(stage.prompts), _count(stage.read),
        _count(stage.written), hours, _bytes(stage.disk),
    )  # fmt: skip


def _count(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "K")):
        if value >= limit:
            return f"{value / (limit if unit != 'K' else 1e3):,.1f} {unit}"
    return f"{value:,.0f}"


def _bytes(value: float) -> str:
    return f"{value / 2**30:,.1f} GiB" if value >= 2**30 else f"{value / 2**20:,.1f} MiB"
