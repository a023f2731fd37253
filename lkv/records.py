"""Files: the columns of result CSVs, JSON and JSONL, hashes. No torch, no pandas at import."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lkv.csv_files import read_csv as read_csv
from lkv.csv_files import stored as stored
from lkv.csv_files import write_csv as write_csv
from lkv.errors import UserError
from lkv.reading import parse, regular
from lkv.reading import require as require
from lkv.sums import check_sum as check_sum
from lkv.sums import sha256_file as sha256_file
from lkv.sums import write_summed as write_summed
from lkv.writing import atomic_write as atomic_write

if TYPE_CHECKING:
    pass

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

# What is read of a study's provenance.json, and of the sections of its config.
PROVENANCE = dict.fromkeys(("device", "backend", "dtype", "commit"), "text or null") | {
    "config": "object or null", "ablation": "object or null", "models": "named objects",
    "adapters": "named objects", "data": "object",
}  # fmt: skip
SECTIONS = ("train", "ablation")


HASH = "lkv_hash"  # in JSON files that figures rest on: of all the rest


def write_json(path: str | Path, value: Any) -> None:
    with atomic_write(path) as stream:
        json.dump(value, stream, indent=2, sort_keys=False, ensure_ascii=False)
        stream.write("\n")


def write_hashed_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """An object that carries its own hash, which `read_json` checks."""
    plain = json.loads(json.dumps(value))  # as it will be read: tuples as lists, keys as text
    write_json(path, {**plain, HASH: fingerprint(plain)})


def read_json(path: str | Path) -> Any:
    """The value of a JSON file; an object that carries a hash of itself is checked, and comes without it.

    Of others a sum is checked where one is kept (lkv.sums).
    """
    place = regular(path, f"no such file: {path}; run the step that writes it, or correct the path")
    content = place.read_bytes()
    value = parse(content, f"{path} is not JSON ({{}}); delete it and run the step that writes it")
    if not isinstance(value, dict) or HASH not in value:
        check_sum(path, hashlib.sha256(content).hexdigest())
    else:
        wanted = value.pop(HASH)
        if fingerprint(value) != wanted:
            raise UserError(
                f"{path} is damaged or was edited: {HASH} is not that of its content; make it again, or "
                f"delete the line with {HASH} to take it as it is"
            )
    return value


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


def write_jsonl(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    with atomic_write(path) as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_jsonl(path: str | Path, halves: bool = False) -> Iterator[dict[str, Any]]:
    """Streams records; a malformed line is named by file and line number. `halves` of characters are let
    pass where a text is only looked at."""
    missing = f"no such data file: {path}; run the step that writes it, or correct the path"
    with regular(path, missing).open("rb") as stream:
        for number, line in enumerate(stream, 1):
            yield parse_line(line, f"{path}, line {number}", halves)


def parse_line(line: bytes, place: str, halves: bool = False) -> dict[str, Any]:
    """The object that a line of JSONL holds; `place` is what an error names."""
    record = parse(line, f"{place}: not a JSON record in UTF-8 ({{}})", halves)
    if not isinstance(record, dict):
        raise UserError(f"{place}: expected a JSON object, found {type(record).__name__}")
    return record


def fingerprint(*parts: Any) -> str:
    """Sixteen hex digits that change when any part does; parts must be JSON values."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
