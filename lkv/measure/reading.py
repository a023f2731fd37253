"""One prefill a context, then every condition's answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch

from lkv.cache.rows import Row
from lkv.eviction.compact import compact
from lkv.eviction.decode import Done, decode_all
from lkv.eviction.extend import extend
from lkv.eviction.prefill import prefill, prefill_many, prompts_at_once
from lkv.interface import Answering, Method, PromptRows
from lkv.measure.choices import choose_all
from lkv.measure.conditions import Cell
from lkv.measure.samples import ROWS_AT_ONCE, PendingSample, stop_tokens
from lkv.model.load import Loaded
from lkv.registry import FULL

Finish: TypeAlias = "Callable[[PendingSample, dict[Cell, dict[str, Any]]], None]"


@torch.no_grad()
def answer_wave(
    loaded: Loaded,
    samples: Sequence[PendingSample],
    methods: Sequence[Method],
    budgets: Sequence[int],
    temperature: float,
    finish: Finish,
) -> None:
    """The missing cells of each sample: the full cache's answers, each method's look, then all decodes.

    `finish` gets the cells of a sample as soon as its last row has ended.
    """
    read_contexts(loaded, samples, methods, temperature)
    for sample in samples:
        read_question(loaded, sample)
    unknown = [sample for sample in samples if sample.answer is None]
    rows = [(sample, row) for sample in unknown for row in compact(sample.whole, None)]  # type: ignore[arg-type]
    for sample, tokens in zip(unknown, decode_samples(loaded, rows), strict=True):
        sample.answer = tokens
    rows = []
    places: list[tuple[PendingSample, Cell]] = []
    facts: dict[PendingSample, dict[Cell, dict[str, Any]]] = {}
    for sample in samples:
        cells, facts[sample] = choose_all(sample, methods, budgets)
        for cell, of_cell in cells.items():
            rows += [(sample, row) for row in of_cell]
            places += [(sample, cell)] * len(of_cell)
    answers: dict[PendingSample, dict[Cell, list[int]]] = {}
    for sample in samples:
        answers[sample] = {(FULL, 0): sample.answer} if (FULL, 0) in sample.missing else {}  # type: ignore[dict-item]

    def finish_if_ended(sample: PendingSample) -> None:
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
    decode_samples(loaded, rows, done)
    for sample in samples:
        sample.asked = sample.whole = sample.context.prefilled = None


def read_contexts(
    loaded: Loaded, samples: Sequence[PendingSample], methods: Sequence[Method], temperature: float
) -> None:
    """Prefills each context once; on CUDA contexts of like length together, as many as are worth it."""
    watched: dict[PromptRows, None] = dict.fromkeys(row for method in methods for row in method.rows)
    widest = max((row.last or 1 for row in watched), default=1)
    unread = {id(sample.context): sample for sample in samples if sample.context.prefilled is None}
    together: list[PendingSample] = []

    def read() -> None:
        record = together[0].record
        stop = stop_tokens(loaded, record)
        contexts = [sample.context for sample in together]
        answering = Answering(
            stop,
            record["max_new_tokens"],
            contexts[0].seed,
            banned=stop if record["min_new_tokens"] else frozenset(),
            temperature=temperature,
        )
        if len(contexts) == 1:
            ids = torch.tensor([contexts[0].ids], device=loaded.model.device)
            done = [prefill(loaded.model, ids, list(watched), answering=answering)[0]]
        else:
            seeds = [context.seed for context in contexts]
            prompts = [context.ids for context in contexts]
            done = prefill_many(loaded.model, prompts, list(watched), answering, seeds)
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


def read_question(loaded: Loaded, sample: PendingSample) -> None:
    """The sample's question after its context, where it is not part of it."""
    context = sample.context.prefilled
    assert context is not None
    sample.asked = sample.whole = context
    if sample.question:
        after = torch.tensor([sample.question], device=loaded.model.device)
        sample.whole = extend(context, None, after)
        sample.asked = replace(context, question=after, first=sample.whole.first, answers=None)


def decode_samples(
    loaded: Loaded, rows: Sequence[tuple[PendingSample, Row]], done: Done = lambda i, tokens: None
) -> list[list[int]]:
    """Tokens of each row, its own sample's number at most; samples alike in that go together.

    `done(i, tokens)` is told of each row as soon as it has ended.
    """
    tokens: dict[int, list[int]] = {}
    alike: dict[tuple[int, frozenset[int]], list[int]] = {}
    for i, (sample, _) in enumerate(rows):
        alike.setdefault((sample.record["max_new_tokens"], stop_tokens(loaded, sample.record)), []).append(i)
    at_once = ROWS_AT_ONCE[loaded.model.device.type]
    for (new, stop), places in alike.items():
        batch = [rows[i][1] for i in places]

        def of_all(r: int, answer: list[int], places: Sequence[int] = places) -> None:
            done(places[r], answer)

        decoded = decode_all(loaded.model, batch, new, stop, at_once, of_all)
        tokens |= dict(zip(places, decoded, strict=True))
    return [tokens[i] for i in range(len(rows))]


def _told(loaded: Loaded, tokens: list[int], prompt: int) -> dict[str, Any]:
    prediction = str(loaded.tokenizer.decode(tokens, skip_special_tokens=True))
    return {
        "prompt_tokens": prompt,
        "new_tokens": len(tokens),
        "status": "ok",
        "prediction": prediction,
        "tokens": tokens,
    }
