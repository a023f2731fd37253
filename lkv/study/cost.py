"""The cost of a study's stages: prompts, tokens, seconds and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lkv.bench import longproc
from lkv.bench.longbench import tasks as longbench
from lkv.bench.ruler import tasks as ruler
from lkv.model.flops import prefill_flop
from lkv.model.shape import NUMBER, Shape
from lkv.study import jobs, schema

FLOPS = 6.2e14  # prefill of an 8B shape in bfloat16, 8K to 32K tokens: 210 and 1,206 ms on one H100
TRAINING_FLOPS = 1.8e14  # SmolLM2, on the same machine (training.csv); larger models do better
READ_BYTES_S = 2.7e12
LAYER_S = 3e-5  # of a decode step's kernels, whatever they do
PROMPT_S = 0.1  # overhead of an evaluated prompt besides prefill and decoding; SmolLM2, 55 conditions
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
    """One line of the plan; tokens are counted as read (prompts) and written (answers)."""

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


def training_prompts(train: Mapping[str, Any]) -> tuple[int, float]:
    """The number of an arm's training prompts, and their mean length in tokens."""
    if train["sources"]:
        return sum(item["count"] for item in train["sources"]), train["max_tokens"] / 2
    return train["samples"], sum(train["lengths"]) / len(train["lengths"])


def task_load(config: Mapping[str, Any], job: jobs.Evaluation, limit: int | None) -> tuple[int, float, int]:
    own = config[job.benchmark]
    cap = own.get("max_new_tokens")
    row: Any
    if job.benchmark == "ruler":
        row = ruler.TASKS[job.task]
        new = min(row.tokens, cap or row.tokens)
        return own["samples"], job.length - new, new
    if job.benchmark == "longbench":
        row, length = longbench.TASKS[job.task], WORDS[job.task] * TOKENS_A_WORD
        length = min(length, limit or length)
    else:
        row, length = longproc.TASKS[job.task], LONGPROC_TOKENS[job.task]
    return min(own["samples"] or row.samples, row.samples), length, min(row.tokens, cap or row.tokens)


def model_shape(model: str, root: Path) -> Shape | None:
    shape = schema.model_spec(model, root)["shape"]
    return None if shape is None else Shape(**shape)


def prefill_seconds(shape: Shape | None, tokens: float, prompts: float, rate: float = FLOPS) -> float | None:
    """Seconds that `prompts` prefills of `tokens` tokens take, at `rate` operations a second."""
    if shape is None:
        return None
    return prompts * prefill_flop(shape, tokens) / rate


def decode_seconds(
    shape: Shape | None, steps: float, rows: int, entries: float, batches: float
) -> float | None:
    """Seconds of `batches` batches of `steps` decode steps each."""
    return None if shape is None else batches * steps * step_s(shape, rows, entries)


def step_s(shape: Shape, rows: int, entries: float) -> float:
    """Seconds of one decode step of `rows` sequences with `entries` cache entries each."""
    weights = max(NUMBER * shape.parameters / READ_BYTES_S, 2 * shape.parameters * rows / FLOPS)
    return LAYER_S * shape.layers + weights + rows * entries * shape.entry_bytes / READ_BYTES_S


def add_seconds(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


def judgements(config: Mapping[str, Any], questions: int) -> int:
    methods = [name for name in config["methods"] if name != "full"]
    return 2 * questions * (1 + len(methods) * len(jobs.budgets(config, jobs.MTBENCH)))


def stage_columns(stage: Stage) -> tuple[str, ...]:
    hours = "unknown" if stage.hours is None else f"{stage.hours:,.2f}"
    return (
        stage.model, stage.name, f"{stage.jobs:,}", short_count(stage.prompts), short_count(stage.read),
        short_count(stage.written), hours, short_bytes(stage.disk),
    )  # fmt: skip


def short_count(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "K")):
        if value >= limit:
            return f"{value / (limit if unit != 'K' else 1e3):,.1f} {unit}"
    return f"{value:,.0f}"


def short_bytes(value: float) -> str:
    return f"{value / 2**30:,.1f} GiB" if value >= 2**30 else f"{value / 2**20:,.1f} MiB"
