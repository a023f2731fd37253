"""The columns of every result CSV, in order, and what values they may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lkv.files.json_files import read_json
from lkv.files.reading import require

TEXT = frozenset((
    "study", "model", "benchmark", "task", "method", "protocol", "haystack", "status", "weights",
    "implementation", "phase", "device", "backend", "dtype", "arm", "lora", "loss", "trained_on", "metric",
    "reference", "label", "engine", "methods", "budgets", "question", "category", "judge", "prompt", "part",
    "best", "best_recall",
))  # fmt: skip
WHOLE = frozenset((
    "length", "sample", "planned", "budget", "n", "n_planned", "prompt_tokens", "new_tokens", "repeats",
    "batch", "step", "samples", "layer", "head", "start", "end", "cells",
))  # fmt: skip
NEEDED = frozenset(("method", "budget", "sample", "length", "step"))  # never empty
HUGE = 2.0**63
EDGE = 1e-6  # what six digits may round a value over its bound
SCORES, SHARES, COUNTS = (0.0, 100.0), (0.0, 1.0), (0.0, HUGE)
BOUNDS = dict.fromkeys(WHOLE, COUNTS) | {
    "score": SCORES, "mean": SCORES, "recall": SHARES, "recall_raw": SHARES, "held_out_recall": SHARES,
    "planned": (1.0, HUGE), "kept_mean": COUNTS, "kept_bytes": COUNTS, "cache_bytes": COUNTS,
    "tokens": COUNTS, "seconds": (2 * EDGE, HUGE), "rating": (1.0, 10.0),
    "theory_ms": COUNTS, "peak_prefill_bytes": COUNTS,
    "peak_decode_bytes": COUNTS, "tokens_per_s": COUNTS, "max_batch": COUNTS, "parameters": COUNTS,
    "p": SHARES, "p_vs_lookaheadkv": SHARES, "kept": SHARES, "mfu": COUNTS,
}  # fmt: skip

# Column order is part of the contract: results/README.md explains each column.
SAMPLE_COLUMNS = (
    "study", "model", "benchmark", "task", "length", "sample", "planned", "method", "budget", "protocol",
    "haystack", "score", "recall", "recall_raw", "kept_mean", "kept_bytes", "prompt_tokens", "new_tokens",
    "status",
)  # fmt: skip
ACCURACY_COLUMNS = (
    "study", "model", "benchmark", "task", "length", "protocol", "haystack", "method", "budget", "n",
    "n_planned", "mean", "ci_low", "ci_high", "retained", "recall", "recall_raw", "kept_mean", "kept_bytes",
    "diff_vs_lookaheadkv", "diff_ci_low", "diff_ci_high", "p_vs_lookaheadkv",
)  # fmt: skip
PAIRED_COLUMNS = (
    "study", "model", "benchmark", "task", "length", "protocol", "haystack", "budget", "metric", "method",
    "reference", "n", "diff", "ci_low", "ci_high", "p",
)  # fmt: skip
LATENCY_COLUMNS = (
    "study", "model", "weights", "length", "budget", "method", "implementation", "batch", "phase",
    "median_ms", "p10_ms", "p90_ms", "repeats", "overhead_ms", "overhead_pct", "ttft_diff_ms", "theory_ms",
    "cache_bytes", "peak_prefill_bytes", "peak_decode_bytes", "tokens_per_s", "max_batch", "status",
    "device", "backend", "dtype",
)  # fmt: skip
RECALL_COLUMNS = (
    "study", "model", "benchmark", "task", "length", "method", "budget", "layer", "head", "n", "recall",
)  # fmt: skip
KEPT_COLUMNS = (
    "study", "model", "benchmark", "task", "length", "sample", "method", "budget", "start", "end", "kept",
    "part",
)  # fmt: skip
ABLATION_COLUMNS = ("arm", *ACCURACY_COLUMNS)
ARMS_COLUMNS = (
    "model", "arm", "tokens", "lora", "loss", "parameters", "steps", "samples", "held_out_kl_before",
    "held_out_kl_after", "held_out_recall", "trained_on",
)  # fmt: skip
THROUGHPUT_COLUMNS = (
    "engine", "model", "run", "samples", "cells", "new_tokens", "seconds", "cells_per_s", "methods",
    "budgets", "device", "dtype",
)  # fmt: skip
JUDGEMENT_COLUMNS = (
    "study", "model", "method", "budget", "question", "category", "turn", "rating", "judge", "temperature",
    "prompt", "status",
)  # fmt: skip
TABLE_COLUMNS = (
    "model", "benchmark", "length", "protocol", "haystack", "method", "label", "budget", "n", "n_planned",
    "score", "ci_low", "ci_high", "best", "recall_raw", "best_recall",
)  # fmt: skip
TRAINING_COLUMNS = (
    "model", "arm", "step", "samples", "kl", "lr", "tokens", "seconds", "tokens_per_s", "mfu",
)  # fmt: skip

CONTRACTS = frozenset((
    SAMPLE_COLUMNS, ACCURACY_COLUMNS, PAIRED_COLUMNS, LATENCY_COLUMNS, RECALL_COLUMNS, KEPT_COLUMNS,
    ABLATION_COLUMNS, ARMS_COLUMNS, THROUGHPUT_COLUMNS, JUDGEMENT_COLUMNS, TABLE_COLUMNS, TRAINING_COLUMNS,
))  # fmt: skip
# A column added after files of a contract were published stands at the contract's end and is listed here:
# contract → its added columns. Older files are read with these columns empty.
ADDED: dict[tuple[str, ...], tuple[str, ...]] = {}

# What is read of a study's provenance.json, and of the sections of its config.
PROVENANCE = dict.fromkeys(("device", "backend", "dtype", "commit"), "text or null") | {
    "config": "object or null", "ablation": "object or null", "models": "named objects",
    "adapters": "named objects", "data": "object",
}  # fmt: skip
SECTIONS = ("train", "ablation")


def read_provenance(path: str | Path) -> dict[str, Any]:
    """What a study's figures rest on, as lkv provenance writes it; of another's study some of it may lack."""
    maker = "lkv provenance"
    facts = require(read_json(path), (), path, maker, PROVENANCE)
    config = require(
        facts.get("config") or {}, (), f"{path}, config", maker, dict.fromkeys(SECTIONS, "object or null")
    )
    own = config.get("ablation") or {}
    require(own, (), f"{path}, config.ablation", maker, {"beside": "texts or null"})
    return facts
