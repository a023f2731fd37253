"""MT-Bench's two turns under eviction; one prefill of the first turn serves all methods and budgets.

Turn one: prefill, evict to the budget, decode. Turn two: its tokens (the first answer, what the template
writes around it, the second question) are read on what was kept, and kept and new entries together are
evicted to the budget again. What was dropped stays dropped, and only the new tokens can look as prompt rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from tqdm import tqdm

from lkv.bench.mtbench import questions as mtbench
from lkv.cache.evictable import full_layers
from lkv.cache.rows import Row
from lkv.cache.sizes import kept_bytes
from lkv.errors import UserError
from lkv.eviction.answer import full_cache_answers
from lkv.eviction.compact import compact
from lkv.eviction.decode import decode_all
from lkv.eviction.extend import extend
from lkv.eviction.pipeline import check_budgets, select_entries
from lkv.eviction.prefill import prefill
from lkv.eviction.prefilled import Prefilled
from lkv.eviction.select import Kept
from lkv.files.json_files import fingerprint
from lkv.files.sums import write_summed
from lkv.interface import Answering, Method
from lkv.measure.samples import ROWS_AT_ONCE
from lkv.model.chat_template import chat_ids
from lkv.model.load import Loaded
from lkv.registry import FULL
from lkv.results.journal import Journal

Cell: TypeAlias = tuple[str, int]  # method, budget
Question: TypeAlias = Mapping[str, Any]


class Asked(NamedTuple):
    """A question as token ids: the first prompt, and what the template writes between the answers."""

    first: list[int]
    second: list[int]


def answers(
    loaded: Loaded,
    questions: Sequence[Question],
    methods: Sequence[Method],
    budgets: Sequence[int],
    max_new_tokens: int,
    study: str,
    seed: int,
    journal_path: str | Path,
    out: str | Path,
    version: int = 1,
) -> str:
    """Runs what the journal lacks, then writes one JSONL line a question × method × budget (mtbench.ANSWER).

    `questions` are mtbench.load_questions'; `max_new_tokens` is per turn. The full cache always runs, as
    method `full` with budget 0. A new `version` makes the journal's finished cells stale. Returns a notice.
    """
    for method in methods:
        check_budgets(method, budgets)
    asked = [_asked(loaded, question, max_new_tokens) for question in questions]
    journal = Journal(journal_path)
    facts = [
        version,
        loaded.fingerprint,
        loaded.dtype,
        loaded.backend,
        loaded.model.device.type,
        sorted(loaded.stop),
        max_new_tokens,
    ]
    lines = []
    with tqdm(questions, desc="answer mtbench", unit="question") as bar:
        for question, ids in zip(bar, asked, strict=True):
            seeded = seed + question["sample"]
            cells = _cells(ids, methods, budgets, [*facts, seeded])
            missing = {cell: key for cell, key in cells.items() if key not in journal.cells}
            if missing:
                full = journal.cells.get(cells[FULL, 0])
                found = _run(loaded, ids, methods, list(missing), max_new_tokens, seeded, full)
                journal.append(
                    [
                        {"key": key, "question_id": question["question_id"], **found[cell]}
                        for cell, key in missing.items()
                    ]
                )
            named = {"study": study, "model": loaded.name, "protocol": mtbench.label(max_new_tokens)}
            lines += [_line(named, question, journal.cells[key]) for key in cells.values()]
    write_summed(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return journal.notice


def _asked(loaded: Loaded, question: Question, max_new_tokens: int) -> Asked:
    tokenizer, turns = loaded.tokenizer, question["turns"]
    after = mtbench.continuation(tokenizer, turns)
    ids = Asked(chat_ids(tokenizer, turns[0]), tokenizer(after, add_special_tokens=False).input_ids)
    limit = loaded.context
    needed = len(ids.first) + len(ids.second) + 2 * max_new_tokens
    if limit is not None and needed > limit:
        raise UserError(
            f"MT-Bench question {question['question_id']} may need {needed} tokens (two answers of up to "
            f"{max_new_tokens}), {loaded.name}'s context is {limit}; lower max_new_tokens"
        )
    return ids


def _cells(
    ids: Asked, methods: Sequence[Method], budgets: Sequence[int], facts: list[Any]
) -> dict[Cell, str]:
    """(method, budget) → journal key, which changes with anything that may change the answers."""
    cells = {(FULL, 0): fingerprint(*facts, *ids, FULL)}
    for method in methods:
        for budget in budgets:
            cells[method.name, budget] = fingerprint(*facts, *ids, method.made_of, budget)
    return cells


@torch.no_grad()
def _run(
    loaded: Loaded,
    ids: Asked,
    methods: Sequence[Method],
    missing: Sequence[Cell],
    max_new_tokens: int,
    seed: int,
    full: Mapping[str, Any] | None,
) -> dict[Cell, dict[str, Any]]:
    """The missing cells of one question. A turn's decodes run as one batch, the full cache's alone."""
    model = loaded.model
    asked = [(method, [b for name, b in missing if name == method.name]) for method in methods]
    asked = [(method, budgets) for method, budgets in asked if budgets]
    watched = dict.fromkeys(row for method, _ in asked for row in method.rows)
    prompt = torch.tensor([ids.first], device=model.device)
    answering = Answering(loaded.stop, max_new_tokens, seed)
    prefilled, _ = prefill(model, prompt, list(watched), answering=answering)
    if full is not None:
        prefilled.answers = [full["tokens"][0]]

    def decoded(rows: Sequence[Row]) -> list[list[int]]:
        return decode_all(model, rows, max_new_tokens, loaded.stop, ROWS_AT_ONCE[model.device.type])

    once: list[tuple[Method, int, Kept | None]] = []
    for method, budgets in asked:
        for budget, selection in zip(budgets, select_entries(prefilled, method, budgets), strict=True):
            once.append((method, budget, selection.kept))
    first = decoded([row for *_, kept in once for row in compact(prefilled, kept)])

    found: dict[Cell, dict[str, Any]] = {}
    rows: list[Row] = []
    for (method, budget, kept), answer in zip(once, first, strict=True):
        whole = extend(prefilled, kept, _after(answer, ids, model.device), method.rows)
        [(again, _)] = select_entries(whole, method, [budget])
        rows += compact(whole, again)
        found[method.name, budget] = _sizes([(prefilled, kept), (whole, again)])
    second = decoded(rows)
    if (FULL, 0) in missing:
        [own] = full_cache_answers(prefilled)
        whole = extend(prefilled, None, _after(own, ids, model.device))
        first, second = [*first, own], [*second, full_cache_answers(whole)[0]]
        found[FULL, 0] = _sizes([(prefilled, None), (whole, None)])
    for (name, budget), *tokens in zip(found, first, second, strict=True):
        texts = loaded.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        found[name, budget] |= {
            "method": name,
            "budget": budget,
            "new_tokens": [len(turn) for turn in tokens],
            "turns": texts,
            "tokens": tokens,
        }
    return found


def _after(answer: list[int], ids: Asked, device: torch.device) -> Tensor:
    return torch.tensor([answer + ids.second], device=device)


def _sizes(turns: Sequence[tuple[Prefilled, Kept | None]]) -> dict[str, list[float]]:
    """One value a turn: tokens read so far, entries kept a KV head (mean over layers), bytes of the cache."""
    kept = [
        [k.shape[-1] for k in kept] if kept else [read.stored(i) for i in full_layers(read.cache)]
        for read, kept in turns
    ]
    return {
        "prompt_tokens": [read.length for read, _ in turns],
        "kept_mean": [sum(counts) / len(counts) for counts in kept],
        "kept_bytes": [kept_bytes(read.cache, kept.counts if kept else None) for read, kept in turns],
    }


def _line(named: Mapping[str, Any], question: Question, cell: Mapping[str, Any]) -> dict[str, Any]:
    own = {name: question[name] for name in ("question_id", "category", "sample", "planned", "reference")}
    line = {**named, **own, "questions": question["turns"], **cell}
    return {name: line[name] for name in mtbench.ANSWER}
