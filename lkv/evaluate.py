"""Evaluation: one task at one length, all methods and budgets from one prefill a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from tqdm import tqdm

from lkv import bench
from lkv.cache import kept_bytes, stored_bytes
from lkv.chat import record_ids, record_parts
from lkv.engine import (
    Prefilled,
    answer_tail,
    check_budgets,
    compact,
    decode_all,
    extend,
    look,
    observe,
    prefill,
)
from lkv.errors import UserError
from lkv.interface import Method, PromptRows, Recipe
from lkv.journal import Journal
from lkv.models import Loaded
from lkv.observe import top_recall
from lkv.records import SAMPLE_COLUMNS, fingerprint, write_csv
from lkv.registry import FULL
from lkv.select import select

# What a benchmark's data file holds a sample (docs/protocols.md explains each).
RECORD = (
    "benchmark", "task", "length", "sample", "planned", "haystack", "protocol", "question_aware", "template",
    "input", "question_at", "answer_prefix", "outputs", "classes", "metric", "max_new_tokens", "stops",
    "min_new_tokens",
)  # fmt: skip
PLAIN = Recipe(pool=None)  # the oracle's top-C for recall: group mean, unpooled, nothing forced
ROWS_AT_ONCE = {"cpu": 64, "cuda": 512}

Record: TypeAlias = Mapping[str, Any]
Cell: TypeAlias = tuple[str, int]  # method, budget


class Choice(NamedTuple):
    """What a method keeps of a prompt: with its recipe, by its bare importance, and what that costs."""

    kept: list[Tensor] | None
    raw: list[Tensor] | None
    bytes: int


def evaluate(
    loaded: Loaded,
    records: Sequence[Record],
    methods: Sequence[Method],
    budgets: Sequence[int],
    study: str,
    seed: int,
    journal_path: str | Path,
    out: str | Path,
    version: int = 1,
) -> str:
    """Runs what the journal lacks, then writes one CSV row a sample × method × budget; returns a notice.

    The full cache always runs: recall and the oracle need its answer. A new `version` makes the journal's
    finished cells stale; scores are taken anew from their predictions.
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
    ]
    task = f"{records[0]['task']}@{records[0]['length']}"
    with tqdm(total=len(records), desc=f"evaluate {task}", unit="sample") as bar:
        for shared in _by_context(records):
            context = _Context(loaded, methods, budgets, seed + shared[0]["sample"])
            for record in shared:
                ids, question = _asked(loaded, record)
                cells = _cells(record, [ids, question, context.seed], methods, budgets, facts)
                missing = {cell: key for cell, key in cells.items() if key not in journal.cells}
                if missing:
                    full = journal.cells.get(cells[FULL, 0])
                    found = context.answer(record, ids, question, list(missing), full)
                    journal.append([{"key": missing[cell], **found[cell]} for cell in missing])
                rows += [_row(study, loaded.name, record, journal.cells[key]) for key in cells.values()]
                bar.update()
    rows.sort(key=lambda row: row["sample"])  # stable: the cells of a sample stay in their order
    write_csv(out, rows, SAMPLE_COLUMNS)
    return journal.notice


def _by_context(records: Sequence[Record]) -> list[list[Record]]:
    """Records that share a prefill: alone, but for questions on one context that is read before them."""
    groups: dict[Any, list[Record]] = {}
    for index, record in enumerate(records):
        context = index if record["question_aware"] else record["input"][: record["question_at"]]
        groups.setdefault(context, []).append(record)
    return list(groups.values())


def _asked(loaded: Loaded, record: Record) -> tuple[list[int], list[int]]:
    """(what is evicted, what is read after it and before the answer)."""
    if record["question_aware"]:
        return record_ids(loaded.tokenizer, record), []
    return record_parts(loaded.tokenizer, record)


def _cells(
    record: Record, prompt: list[Any], methods: Sequence[Method], budgets: Sequence[int], facts: list[Any]
) -> dict[Cell, str]:
    """(method, budget) → journal key, which changes with anything that may change the result."""
    named = ("task", "sample", "protocol", "max_new_tokens", "stops", "min_new_tokens")
    content = [*prompt, *(record[name] for name in named)]
    cells = {(FULL, 0): fingerprint(*facts, *content, FULL)}
    for method in methods:
        what = [method.name, method.version, method.identity, asdict(method.recipe)]
        for budget in budgets:
            cells[method.name, budget] = fingerprint(*facts, *content, *what, budget)
    return cells


class _Context:
    """A prompt, prefilled when the first cell that needs it is missing, and what each method keeps of it."""

    def __init__(self, loaded: Loaded, methods: Sequence[Method], budgets: Sequence[int], seed: int) -> None:
        self.loaded, self.methods, self.budgets, self.seed = loaded, methods, budgets, seed
        self.prefilled: Prefilled | None = None
        self.choices: dict[Cell, Choice] = {}

    @torch.no_grad()
    def answer(
        self,
        record: Record,
        ids: list[int],
        question: list[int],
        missing: Sequence[Cell],
        full: Record | None,
    ) -> dict[Cell, dict[str, Any]]:
        """The missing cells of one sample: each method's look, one batch of decodes."""
        model, new_tokens = self.loaded.model, record["max_new_tokens"]
        stop = self.loaded.stop | _stops(self.loaded, record)
        prefilled = self._read(ids, record, stop)
        asked = whole = prefilled
        after = torch.tensor([question], device=model.device)
        if question:
            whole = extend(prefilled, None, after)
            asked = replace(prefilled, question=after, first=whole.first)
        if full is not None:
            whole.answers = [full["tokens"]]
        asked.answers = whole.answers
        target = look(asked, answer_tail(asked))
        best = {budget: select(target, PLAIN, budget, prefilled.kv_heads) for budget in self.budgets}

        found: dict[Cell, dict[str, Any]] = {}
        rows = []
        for method in self.methods:
            needed = [budget for budget in self.budgets if (method.name, budget) in missing]
            for budget, choice in zip(needed, self._choose(method, needed, asked), strict=True):
                at_hand = extend(prefilled, choice.kept, after) if question else prefilled
                rows += compact(at_hand, None if question else choice.kept)
                found[method.name, budget] = {
                    "recall": _recall(choice.kept, best[budget]),
                    "recall_raw": _recall(choice.raw, best[budget]),
                    "kept_mean": _kept_mean(choice.kept, prefilled.length),
                    "kept_bytes": choice.bytes,
                }
        tokens = decode_all(model, rows, new_tokens, stop, ROWS_AT_ONCE[model.device.type])
        if (FULL, 0) in missing:
            found[FULL, 0] = {
                "recall": None,
                "recall_raw": None,
                "kept_mean": prefilled.length,
                "kept_bytes": stored_bytes(prefilled.cache),
            }
            tokens.append(whole.answers[0])
        for (name, budget), answer in zip(found, tokens, strict=True):
            cell = {"sample": record["sample"], "method": name, "budget": budget}
            found[name, budget] |= cell | _answered(self.loaded, answer, len(ids) + len(question))
        return found

    def _read(self, ids: list[int], record: Record, stop: frozenset[int]) -> Prefilled:
        if self.prefilled is None:
            watched: dict[PromptRows, None] = dict.fromkeys(r for method in self.methods for r in method.rows)
            self.prefilled, _ = prefill(
                self.loaded.model,
                torch.tensor([ids], device=self.loaded.model.device),
                list(watched),
                stop=stop,
                answer_tokens=record["max_new_tokens"],
                seed=self.seed,
                banned=stop if record["min_new_tokens"] else frozenset(),
            )
        return self.prefilled

    def _choose(self, method: Method, budgets: Sequence[int], asked: Prefilled) -> list[Choice]:
        """What the method keeps; chosen once a context, unless the choice depends on the answer."""
        new = [b for b in budgets if method.knows_answer or (method.name, b) not in self.choices]
        view = asked if method.knows_answer else self.prefilled
        assert view is not None
        for budget, importance in zip(new, observe(view, method, new) if new else [], strict=True):
            kept = select(importance, method.recipe, budget, view.kv_heads)
            raw = select(importance, PLAIN, budget, view.kv_heads)
            self.choices[method.name, budget] = Choice(kept, raw, kept_bytes(view.cache, kept))
        return [self.choices[method.name, budget] for budget in budgets]


def _stops(loaded: Loaded, record: Record) -> frozenset[int]:
    """A task's own stop tokens: the last token of each of its stop texts."""
    ends = [loaded.tokenizer(text, add_special_tokens=False).input_ids for text in record["stops"]]
    return frozenset(int(ids[-1]) for ids in ends)


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


def _kept_mean(kept: list[Tensor] | None, prompt: int) -> float:
    return float(prompt) if kept is None else sum(k.shape[-1] for k in kept) / len(kept)


def _row(study: str, model: str, record: Record, cell: Record) -> dict[str, Any]:
    named = ("benchmark", "task", "length", "planned", "protocol", "haystack")
    return {
        "study": study,
        "model": model,
        **{name: record[name] for name in named},
        "score": bench.score(record, cell["prediction"]),
        **{name: cell[name] for name in SAMPLE_COLUMNS if name in cell},
    }
