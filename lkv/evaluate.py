"""Evaluation: one task at one length, all methods and budgets from one prefill a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lkv.bench import ruler
from lkv.cache import stored_bytes
from lkv.chat import chat_ids
from lkv.engine import answer_tail, check_budgets, compact, decode_all, look, observe, prefill
from lkv.errors import UserError
from lkv.interface import Importance, Method, PromptRows, Recipe
from lkv.journal import Journal
from lkv.models import Loaded
from lkv.observe import top_recall
from lkv.records import SAMPLE_COLUMNS, fingerprint, write_csv
from lkv.registry import FULL
from lkv.select import select

RECORD = (
    "benchmark", "task", "length", "sample", "input", "answer_prefix", "outputs", "max_new_tokens",
    "haystack", "metric",
)  # fmt: skip
PLAIN = Recipe(pool=None)  # the oracle's top-C for recall: group mean, unpooled, nothing forced
ROWS_AT_ONCE = {"cpu": 64, "cuda": 512}


def evaluate(
    loaded: Loaded,
    records: Sequence[dict[str, Any]],
    methods: Sequence[Method],
    budgets: Sequence[int],
    labels: dict[str, str],
    seed: int,
    journal_path: str | Path,
    out: str | Path,
    version: int = 1,
) -> str:
    """Runs what the journal lacks, then writes one CSV row a sample × method × budget; returns a notice.

    `labels` holds study and protocol. The full cache always runs: recall and the oracle need its answer. A
    new `version` makes the journal's finished cells stale; scores are taken anew from their predictions.
    """
    if not records:
        raise UserError("the data file has no records; build it again with lkv data")
    for method in methods:
        check_budgets(method, budgets)
    journal = Journal(journal_path)
    rows: list[dict[str, Any]] = []
    facts = [
        version,
        loaded.fingerprint,
        loaded.dtype,
        loaded.backend,
        loaded.model.device.type,
        sorted(loaded.stop),
        labels["protocol"],
        seed,
    ]
    task = f"{records[0]['task']}@{records[0]['length']}"
    for record in tqdm(records, desc=f"evaluate {task}", unit="sample"):
        ids = chat_ids(loaded.tokenizer, record["input"], record["answer_prefix"])
        cells = _cells(record, ids, methods, budgets, facts)
        missing = {cell: key for cell, key in cells.items() if key not in journal.cells}
        if missing:
            full = journal.cells.get(cells[FULL, 0])
            wanted = [method for method in methods if any((method.name, b) in missing for b in budgets)]
            found = _run(loaded, record, ids, wanted, budgets, missing, seed, full)
            journal.append([{"key": missing[cell], **found[cell]} for cell in missing])
        rows += [_row(loaded.name, record, labels, journal.cells[key]) for key in cells.values()]
    write_csv(out, rows, SAMPLE_COLUMNS)
    return journal.notice


def _cells(
    record: dict[str, Any],
    ids: list[int],
    methods: Sequence[Method],
    budgets: Sequence[int],
    facts: list[Any],
) -> dict[tuple[str, int], str]:
    """(method, budget) → journal key, which changes with anything that may change the result."""
    content = [ids, *(record[name] for name in ("task", "sample", "max_new_tokens"))]
    cells = {(FULL, 0): fingerprint(*facts, *content, FULL)}
    for method in methods:
        what = [method.name, method.version, method.identity, asdict(method.recipe)]
        for budget in budgets:
            cells[method.name, budget] = fingerprint(*facts, *content, *what, budget)
    return cells


@torch.no_grad()
def _run(
    loaded: Loaded,
    record: dict[str, Any],
    ids: list[int],
    methods: Sequence[Method],
    budgets: Sequence[int],
    missing: dict[tuple[str, int], str],
    seed: int,
    full: dict[str, Any] | None,
) -> dict[tuple[str, int], dict[str, Any]]:
    """The missing cells of one sample: one prefill, each method's look, one batch of decodes."""
    model, new_tokens = loaded.model, record["max_new_tokens"]
    watched: dict[PromptRows, None] = dict.fromkeys(row for method in methods for row in method.rows)
    prefilled, _ = prefill(
        model,
        torch.tensor([ids], device=model.device),
        list(watched),
        stop=loaded.stop,
        answer_tokens=new_tokens,
        seed=seed + record["sample"],
    )
    if full is not None:
        prefilled.answers = [full["tokens"]]
    answer = prefilled.answers[0]
    target = look(prefilled, answer_tail(prefilled))
    best = {budget: select(target, PLAIN, budget, prefilled.kv_heads) for budget in budgets}

    found: dict[tuple[str, int], dict[str, Any]] = {}
    rows = []
    for method in methods:
        needed = [budget for budget in budgets if (method.name, budget) in missing]
        for budget, importance in zip(needed, observe(prefilled, method, needed), strict=True):
            kept = select(importance, method.recipe, budget, prefilled.kv_heads)
            [row] = compact(prefilled, kept)
            found[method.name, budget] = {
                "recall": _recall(kept, best[budget]),
                "recall_raw": _raw_recall(importance, best[budget], budget, prefilled.kv_heads),
                "kept_mean": _kept_mean(kept, prefilled.length),
                "kept_bytes": row.bytes,
            }
            rows.append(row)
    tokens = decode_all(model, rows, new_tokens, loaded.stop, ROWS_AT_ONCE[model.device.type])
    if (FULL, 0) in missing:
        found[FULL, 0] = {
            "recall": None,
            "recall_raw": None,
            "kept_mean": prefilled.length,
            "kept_bytes": stored_bytes(prefilled.cache),
        }
        tokens.append(answer)
    for (name, budget), text in zip(found, tokens, strict=True):
        cell = {"sample": record["sample"], "method": name, "budget": budget}
        found[name, budget] |= cell | _answered(loaded, text, len(ids))
    return found


def _answered(loaded: Loaded, tokens: list[int], prompt: int) -> dict[str, Any]:
    prediction = str(loaded.tokenizer.decode(tokens, skip_special_tokens=True))
    return {
        "prompt_tokens": prompt,
        "new_tokens": len(tokens),
        "status": "ok",
        "prediction": prediction,
        "tokens": tokens,
    }


def _recall(kept: list[Tensor] | None, best: list[Tensor] | None) -> float:
    """Share of the oracle's top-C that was kept: mean over layers and KV heads."""
    if kept is None or best is None:
        return 1.0
    return float(torch.stack([top_recall(k, b).mean() for k, b in zip(kept, best, strict=True)]).mean())


def _raw_recall(importance: Importance, best: list[Tensor] | None, budget: int, kv_heads: int) -> float:
    """The same for the top-C of the method's own importance, unpooled, nothing forced."""
    return _recall(select(importance, PLAIN, budget, kv_heads), best)


def _kept_mean(kept: list[Tensor] | None, prompt: int) -> float:
    return float(prompt) if kept is None else sum(k.shape[-1] for k in kept) / len(kept)


def _row(model: str, record: dict[str, Any], labels: dict[str, str], cell: dict[str, Any]) -> dict[str, Any]:
    return {
        **labels,
        "model": model,
        **{name: record[name] for name in ("benchmark", "task", "length", "haystack")},
        "score": ruler.score(cell["prediction"], record["outputs"], record["metric"]),
        **{name: cell[name] for name in SAMPLE_COLUMNS if name in cell},
    }
