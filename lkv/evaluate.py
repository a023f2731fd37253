"""Evaluation: one task at one length, all methods and budgets from one prefill a sample.

Samples go in waves: as many prompts as fit are read, and all their rows are decoded together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from tqdm import tqdm

from lkv import bench
from lkv.cache import Row, entry_bytes, kept_bytes, stored_bytes
from lkv.chat import record_ids, record_parts
from lkv.decode import Done, decode_all
from lkv.device import memory
from lkv.engine import answer_tail, check_budgets, look, observe
from lkv.errors import UserError
from lkv.interface import Importance, Method, PromptRows
from lkv.journal import Journal
from lkv.models import Loaded
from lkv.observe import top_recall
from lkv.prefill import Prefilled, compact, extend, prefill, prefill_many, prompts_at_once
from lkv.records import SAMPLE_COLUMNS, fingerprint, write_csv
from lkv.registry import FULL
from lkv.select import PLAIN, Kept, candidates, choose

# What a benchmark's data file holds a sample, and of which kind (docs/protocols.md explains each).
RECORD = {
    "benchmark": "name", "task": "name", "length": "count", "sample": "count", "planned": "some",
    "haystack": "text", "protocol": "name", "question_aware": "flag", "template": "flag", "input": "name",
    "question_at": "count", "answer_prefix": "text", "outputs": "texts", "classes": "texts",
    "metric": "name", "max_new_tokens": "some", "stops": "texts", "min_new_tokens": "count",
}  # fmt: skip
# Decoded as one batch: what keeps the device busy, and no more, because a kill loses what is being decoded.
ROWS_AT_ONCE = {"cpu": 32, "cuda": 512}

Record: TypeAlias = dict[str, Any]
Cell: TypeAlias = tuple[str, int]  # method, budget
Finish: TypeAlias = "Callable[[_Sample, dict[Cell, dict[str, Any]]], None]"


class Choice(NamedTuple):
    """What a method keeps of a prompt: with its recipe, by its bare importance, and what that costs."""

    kept: Kept | None
    raw: Kept | None
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
    temperatures: Sequence[float] = (0.0,),
) -> str:
    """Runs what the journal lacks, then writes one CSV row a sample × method × budget; returns a notice.

    The full cache always runs: recall and the oracle need its answer. A new `version` makes the journal's
    finished cells stale; scores are taken anew from their predictions. At a temperature of 0 answers are
    greedy; above it they are drawn with the same noise for all methods, and their rows' protocol names it.
    """
    if not records:
        raise UserError("the data file has no records; build it again with lkv data")
    for method in methods:
        check_budgets(method, budgets)
    journal = Journal(journal_path)
    facts = [
        version,
        loaded.fingerprint,
        loaded.dtype,
        loaded.backend,
        loaded.model.device.type,
        sorted(loaded.stop),
    ]
    rows: list[dict[str, Any]] = []
    named = f"{records[0]['task']}@{records[0]['length']}"

    def finish(sample: _Sample, cells: dict[Cell, dict[str, Any]]) -> None:
        journal.append([{"key": key, **cells[cell]} for cell, key in sample.missing.items()])
        bar.update(1)

    with tqdm(total=len(records) * len(temperatures), desc=f"evaluate {named}", unit="sample") as bar:
        for temperature in temperatures:
            told = [record | {"protocol": _protocol(record, temperature)} for record in records]
            for wave in _waves(loaded, _samples(loaded, told, methods, budgets, seed, facts), journal):
                todo = [sample for sample in wave if sample.missing]
                bar.update(len(wave) - len(todo))
                if todo:
                    _answered(loaded, todo, methods, budgets, temperature, finish)
                for sample in wave:
                    keys = sample.cells.values()
                    rows += [_row(study, loaded.name, sample.record, journal.cells[key]) for key in keys]
    rows.sort(key=lambda row: row["sample"])  # stable: the cells of a sample stay in their order
    write_csv(out, rows, SAMPLE_COLUMNS)
    return journal.notice


def _protocol(record: Record, temperature: float) -> str:
    named = f" temperature={temperature:g}" if temperature else ""
    return f"{record['protocol']}{named}"


class Looked(NamedTuple):
    """A sample's prompt as it is evicted, each method's choice from it, the oracle's top-C a budget."""

    ids: list[int]
    layers: list[int]  # those that are evicted from
    kv_heads: int
    choices: dict[Cell, Choice]
    best: dict[int, Kept | None]


@torch.no_grad()
def looked(
    loaded: Loaded, record: Record, methods: Sequence[Method], budgets: Sequence[int], seed: int
) -> Looked:
    """What the methods keep of one sample; nothing is decoded but the full cache's answer and drafts."""
    for method in methods:
        check_budgets(method, budgets)
    [sample] = _samples(loaded, [record], methods, budgets, seed, [])
    _read_contexts(loaded, [sample], methods, 0.0)
    _read_question(loaded, sample)
    prefilled, whole = sample.context.prefilled, sample.whole
    assert prefilled is not None and whole is not None
    [sample.answer] = _decoded(loaded, [(sample, row) for row in compact(whole, None)])
    best = _best(sample, budgets)
    for method in methods:
        _choose(sample, method, budgets)
    found = prefilled.full_layers, prefilled.kv_heads, sample.context.choices, best
    return Looked(sample.context.ids, *found)


@dataclass(eq=False)
class _Context:
    """What is evicted: a prompt's ids, and once they are read its cache and each method's choice from it."""

    ids: list[int]
    seed: int
    prefilled: Prefilled | None = None
    choices: dict[Cell, Choice] = field(default_factory=dict)


@dataclass(eq=False)
class _Sample:
    """One record: its context (shared with other questions on it where those are read after the eviction),
    its question's ids (none where the question is part of what is evicted), its cells' journal keys."""

    record: Record
    context: _Context
    question: list[int]
    cells: dict[Cell, str]
    missing: dict[Cell, str] = field(default_factory=dict)
    answer: list[int] | None = None  # the full cache's, where it is known
    asked: Prefilled | None = None  # the context, its question known
    whole: Prefilled | None = None  # the context, its question read


def _samples(
    loaded: Loaded,
    records: Sequence[Record],
    methods: Sequence[Method],
    budgets: Sequence[int],
    seed: int,
    facts: list[Any],
) -> Iterator[_Sample]:
    """Samples of one context follow each other."""
    for shared in _by_context(records):
        context: _Context | None = None
        for record in shared:
            ids, question = _asked(loaded, record)
            if context is None:
                context = _Context(ids, seed + record["sample"])
            cells = _cells(record, [ids, question, context.seed], methods, budgets, facts)
            yield _Sample(record, context, question, cells)


def _waves(loaded: Loaded, samples: Iterator[_Sample], journal: Journal) -> Iterator[list[_Sample]]:
    """Samples that are answered together: their caches and rows fill a third of the memory at most."""
    room = memory(loaded.model.device) // 3
    entry = entry_bytes(loaded.model)
    wave: list[_Sample] = []
    used = rows = 0
    for sample in samples:
        sample.missing = {cell: key for cell, key in sample.cells.items() if key not in journal.cells}
        sample.answer = journal.cells.get(sample.cells[FULL, 0], {}).get("tokens")
        new = sample.record["max_new_tokens"]
        length = len(sample.context.ids) + len(sample.question)
        # A row is there twice: kept, and in the storage that it is decoded from.
        kept = [2 * (min(budget, length) + new) for _, budget in sample.missing if budget]
        needed = entry * (2 * (length + new) + sum(kept)) if sample.missing else 0
        own_context = not wave or wave[-1].context is not sample.context
        if wave and own_context and (used + needed > room or rows >= ROWS_AT_ONCE[loaded.model.device.type]):
            yield wave
            wave, used, rows = [], 0, 0
        wave.append(sample)
        used, rows = used + needed, rows + len(kept)
    if wave:
        yield wave


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
        for budget in budgets:
            cells[method.name, budget] = fingerprint(*facts, *content, method.made_of, budget)
    return cells


@torch.no_grad()
def _answered(
    loaded: Loaded,
    samples: Sequence[_Sample],
    methods: Sequence[Method],
    budgets: Sequence[int],
    temperature: float,
    finish: Finish,
) -> None:
    """The missing cells of each sample: the full cache's answers, each method's look, then all decodes.

    `finish` gets the cells of a sample as soon as its last row has ended.
    """
    _read_contexts(loaded, samples, methods, temperature)
    for sample in samples:
        _read_question(loaded, sample)
    unknown = [sample for sample in samples if sample.answer is None]
    rows = [(sample, row) for sample in unknown for row in compact(sample.whole, None)]  # type: ignore[arg-type]
    for sample, tokens in zip(unknown, _decoded(loaded, rows), strict=True):
        sample.answer = tokens
    rows = []
    places: list[tuple[_Sample, Cell]] = []
    facts: dict[_Sample, dict[Cell, dict[str, Any]]] = {}
    for sample in samples:
        cells, facts[sample] = _choose_all(sample, methods, budgets)
        for cell, of_cell in cells.items():
            rows += [(sample, row) for row in of_cell]
            places += [(sample, cell)] * len(of_cell)
    answers: dict[_Sample, dict[Cell, list[int]]] = {}
    for sample in samples:
        answers[sample] = {(FULL, 0): sample.answer} if (FULL, 0) in sample.missing else {}  # type: ignore[dict-item]

    def finish_if_ended(sample: _Sample) -> None:
        if len(answers[sample]) == len(facts[sample]):
            length = len(sample.context.ids) + len(sample.question)
            cells = {}
            for (name, budget), fact in facts[sample].items():
                named = {"sample": sample.record["sample"], "method": name, "budget": budget}
                answer = _told(loaded, answers[sample][name, budget], length)
                cells[name, budget] = fact | named | answer
            finish(sample, cells)

    def done(i: int, answer: list[int]) -> None:
        sample, cell = places[i]
        answers[sample][cell] = answer
        finish_if_ended(sample)

    for sample in samples:  # of some, the full cache's answer alone was missing
        finish_if_ended(sample)
    _decoded(loaded, rows, done)
    for sample in samples:
        sample.asked = sample.whole = sample.context.prefilled = None


def _read_contexts(
    loaded: Loaded, samples: Sequence[_Sample], methods: Sequence[Method], temperature: float
) -> None:
    """Prefills each context once; on CUDA contexts of like length together, as many as are worth it."""
    watched: dict[PromptRows, None] = dict.fromkeys(row for method in methods for row in method.rows)
    widest = max((row.last or 1 for row in watched), default=1)
    unread = {id(sample.context): sample for sample in samples if sample.context.prefilled is None}
    together: list[_Sample] = []

    def read() -> None:
        record = together[0].record
        stop = _stops(loaded, record)
        settings = {
            "stop": stop,
            "answer_tokens": record["max_new_tokens"],
            "banned": stop if record["min_new_tokens"] else frozenset(),
            "temperature": temperature,
        }
        contexts = [sample.context for sample in together]
        if len(contexts) == 1:
            ids = torch.tensor([contexts[0].ids], device=loaded.model.device)
            done = [prefill(loaded.model, ids, list(watched), seed=contexts[0].seed, **settings)[0]]
        else:
            seeds = [context.seed for context in contexts]
            prompts = [context.ids for context in contexts]
            done = prefill_many(loaded.model, prompts, list(watched), seeds, **settings)
        for context, prefilled in zip(contexts, done, strict=True):
            context.prefilled = prefilled
        together.clear()

    for sample in sorted(unread.values(), key=lambda sample: len(sample.context.ids)):
        length = len(sample.context.ids)
        alike = not together or all(
            sample.record[name] == together[0].record[name]
            for name in ("max_new_tokens", "stops", "min_new_tokens")
        )
        most = prompts_at_once(loaded.model, length) if length >= widest else 1
        if together and (not alike or len(together) >= most):
            read()
        together.append(sample)
    if together:
        read()


def _read_question(loaded: Loaded, sample: _Sample) -> None:
    """The sample's question after its context, where it is not part of it."""
    context = sample.context.prefilled
    assert context is not None
    sample.asked = sample.whole = context
    if sample.question:
        after = torch.tensor([sample.question], device=loaded.model.device)
        sample.whole = extend(context, None, after)
        sample.asked = replace(context, question=after, first=sample.whole.first)


def _choose_all(
    sample: _Sample, methods: Sequence[Method], budgets: Sequence[int]
) -> tuple[dict[Cell, list[Row]], dict[Cell, dict[str, Any]]]:
    """Of each missing cell the row to decode (the full cache's is known), and what its CSV row says of it."""
    prefilled, asked = sample.context.prefilled, sample.asked
    assert prefilled is not None and asked is not None
    stored = [prefilled.length] * len(prefilled.full_layers)
    best = _best(sample, budgets)
    rows: dict[Cell, list[Row]] = {}
    facts: dict[Cell, dict[str, Any]] = {}
    recalls: list[Tensor] = []
    for method in methods:
        needed = [budget for budget in budgets if (method.name, budget) in sample.missing]
        for budget, choice in zip(needed, _choose(sample, method, needed), strict=True):
            at_hand, kept = prefilled, choice.kept
            if asked.question is not None:
                at_hand, kept = extend(prefilled, kept, asked.question), None
            rows[method.name, budget] = compact(at_hand, kept)
            device = prefilled.ids.device
            recalls += [_recall(found, best[budget], device) for found in (choice.kept, choice.raw)]
            counts = stored if choice.kept is None else choice.kept.counts
            facts[method.name, budget] = {
                "kept_mean": sum(counts) / len(counts),
                "kept_bytes": choice.bytes,
            }
    values = iter(torch.stack(recalls).tolist() if recalls else [])  # one wait for the device
    for of_cell in facts.values():
        of_cell |= {"recall": next(values), "recall_raw": next(values)}
    if (FULL, 0) in sample.missing:
        facts[FULL, 0] = {
            "recall": None,
            "recall_raw": None,
            "kept_mean": prefilled.length,
            "kept_bytes": stored_bytes(prefilled.cache),
        }
    return rows, facts


def _best(sample: _Sample, budgets: Sequence[int]) -> dict[int, Kept | None]:
    """The entries that the full cache's own answer looks at most, a budget."""
    asked = sample.asked
    assert asked is not None and sample.answer is not None
    asked.answers = [sample.answer]
    stored = [asked.length] * len(asked.full_layers)
    target = candidates(look(asked, answer_tail(asked)), PLAIN, asked.kv_heads)
    return {budget: choose(target, PLAIN, budget, stored) for budget in budgets}


def _choose(sample: _Sample, method: Method, budgets: Sequence[int]) -> list[Choice]:
    """What the method keeps; chosen once a context, unless the choice depends on the answer."""
    context = sample.context
    new = [b for b in budgets if method.knows_answer or (method.name, b) not in context.choices]
    view = sample.asked if method.knows_answer else context.prefilled
    assert view is not None
    scored: dict[int, tuple[Importance, Sequence[Tensor], Sequence[Tensor]]] = {}
    for budget, seen in zip(new, observe(view, method, new) if new else [], strict=True):
        if id(seen) not in scored:  # equal observers have looked once
            scores = candidates(seen, method.recipe, view.kv_heads)
            scored[id(seen)] = seen, scores, candidates(seen, PLAIN, view.kv_heads)
        _, scores, plain = scored[id(seen)]
        stored = [layer.shape[-1] for layer in seen]
        kept = choose(scores, method.recipe, budget, stored)
        raw = choose(plain, PLAIN, budget, stored)
        context.choices[method.name, budget] = Choice(
            kept, raw, kept_bytes(view.cache, kept.counts if kept else None)
        )
    return [context.choices[method.name, budget] for budget in budgets]


def _decoded(
    loaded: Loaded, rows: Sequence[tuple[_Sample, Row]], done: Done = lambda i, tokens: None
) -> list[list[int]]:
    """Tokens of each row, its own sample's number at most; samples alike in that go together.

    `done(i, tokens)` is told of each row as soon as it has ended.
    """
    tokens: dict[int, list[int]] = {}
    alike: dict[tuple[int, frozenset[int]], list[int]] = {}
    for i, (sample, _) in enumerate(rows):
        alike.setdefault((sample.record["max_new_tokens"], _stops(loaded, sample.record)), []).append(i)
    at_once = ROWS_AT_ONCE[loaded.model.device.type]
    for (new, stop), places in alike.items():
        batch = [rows[i][1] for i in places]

        def of_all(r: int, answer: list[int], places: Sequence[int] = places) -> None:
            done(places[r], answer)

        decoded = decode_all(loaded.model, batch, new, stop, at_once, of_all)
        tokens |= dict(zip(places, decoded, strict=True))
    return [tokens[i] for i in range(len(rows))]


def _stops(loaded: Loaded, record: Record) -> frozenset[int]:
    """The model's stop tokens and the task's own: the last token of each of its stop texts."""
    ends = [loaded.tokenizer(text, add_special_tokens=False).input_ids for text in record["stops"]]
    return loaded.stop | frozenset(int(ids[-1]) for ids in ends)


def _told(loaded: Loaded, tokens: list[int], prompt: int) -> dict[str, Any]:
    prediction = str(loaded.tokenizer.decode(tokens, skip_special_tokens=True))
    return {
        "prompt_tokens": prompt,
        "new_tokens": len(tokens),
        "status": "ok",
        "prediction": prediction,
        "tokens": tokens,
    }


def head_recall(kept: Kept, best: Kept) -> Tensor:
    """Share of the oracle's top-C that was kept, a layer, prompt and KV head: float [L, B, K]."""
    places = torch.arange(kept.indices.shape[-1], device=kept.indices.device)
    counts = torch.tensor(kept.counts, device=places.device)[:, None, None, None]
    real = torch.where(places < counts, kept.indices, -1 - places)  # what is padding equals nothing
    return top_recall(real, best.indices)


def _recall(kept: Kept | None, best: Kept | None, device: torch.device) -> Tensor:
    """Mean of head_recall over layers and KV heads; a scalar on the device."""
    if kept is None or best is None:
        return torch.ones([], device=device)
    return head_recall(kept, best).mean()


def _row(study: str, model: str, record: Record, cell: Record) -> dict[str, Any]:
    named = ("benchmark", "task", "length", "planned", "protocol", "haystack")
    return {
        "study": study,
        "model": model,
        **{name: record[name] for name in named},
        "score": bench.score(record, cell["prediction"]),
        **{name: cell[name] for name in SAMPLE_COLUMNS if name in cell},
    }
