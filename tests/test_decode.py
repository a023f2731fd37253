"""Many rows decoded as one batch are each as decoded alone: rows that end early, batches cut in memory."""

from __future__ import annotations

import gc
from itertools import pairwise
from typing import Any
from weakref import ref

import pytest
import torch
from conftest import observed

from lkv import registry
from lkv.cache.rows import Row
from lkv.errors import UserError
from lkv.eviction import decode as decoding
from lkv.eviction import decoder
from lkv.eviction.decode import decode, decode_all
from lkv.eviction.decoder import rounded_up
from lkv.eviction.pipeline import evict_to
from lkv.eviction.single_pass import prefill_for

NEW = 24


@pytest.fixture(scope="module")
def model() -> Any:
    return observed("llama")


@pytest.fixture(scope="module")
def rows(model: Any) -> list[Row]:
    """Six prompts of different lengths, each evicted to another budget."""
    method, found = registry.get("snapkv"), []
    for i in range(6):
        ids = torch.randint(0, 250, (1, 90 + 7 * i), generator=torch.Generator().manual_seed(i))
        prefilled = prefill_for(model, ids, method)
        found += evict_to(prefilled, method, 40 + 5 * i)
    return found


@pytest.fixture(scope="module")
def alone(model: Any, rows: list[Row]) -> list[list[int]]:
    return [decode(model, [row], NEW).tokens[0] for row in rows]


def cut(answer: list[int], stop: frozenset[int]) -> list[int]:
    return next((answer[:i] for i, token in enumerate(answer) if token in stop), answer)


def test_a_model_that_nobody_uses_is_freed_with_what_decodes_its_rows(rows: list[Row]) -> None:
    model = observed("llama")
    kept = decoder.decoder_for(model, rows, NEW, False)
    decoder._pools[model].decoders[6, 1, False, 0.0] = kept  # where a captured one is kept
    gone = ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("ended", [1, 3, 5, 6])
def test_rows_that_end_early_leave_the_others_answers_as_they_are(
    model: Any, rows: list[Row], alone: list[list[int]], ended: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = frozenset(answer[3 + i] for i, answer in enumerate(alone[:ended]))
    sizes: list[int] = []
    real = decoder.decoder_for
    monkeypatch.setattr(
        decoding, "decoder_for", lambda m, r, *more: sizes.append(len(r)) or real(m, r, *more)
    )
    done = decode(model, rows, NEW, stop)
    assert done.tokens == [cut(answer, stop) for answer in alone]
    lasting = sum(cut(answer, stop) == answer for answer in alone)
    assert sizes[0] == 6 and all(less <= more // 2 for more, less in pairwise(sizes))
    assert len(sizes) == 1 if lasting > 3 else len(sizes) > 1
    assert done.steps == NEW - 1 if lasting else done.steps < NEW - 1


def test_a_row_whose_first_token_is_a_stop_answers_nothing(model: Any, rows: list[Row]) -> None:
    stop = frozenset({int(rows[0].token)})
    assert decode(model, rows[:1], NEW, stop).tokens == [[]]


def test_recorded_queries_are_those_of_every_drafted_token(model: Any, rows: list[Row]) -> None:
    done = decode(model, rows, 5, record=True)
    assert [query.shape for query in done.queries] == [(6, 8, 5, 16)] * 3
    again = decode(model, rows[2:3], 5, record=True)
    assert again.tokens[0] == done.tokens[2]
    torch.testing.assert_close(again.queries[1][0], done.queries[1][2], rtol=1e-4, atol=1e-5)


def test_batches_are_halved_until_they_fit_and_answers_keep_their_order(
    model: Any, rows: list[Row], alone: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tried = decoding.decode, []

    def scarce(model: Any, rows: Any, *more: Any, **named: Any) -> Any:
        tried.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError
        return real(model, rows, *more, **named)

    monkeypatch.setattr(decoding, "decode", scarce)
    mixed = [rows[i] for i in (3, 0, 5, 1, 4, 2)]
    assert decode_all(model, mixed, NEW, frozenset(), 6) == [alone[i] for i in (3, 0, 5, 1, 4, 2)]
    assert tried == [6, 3, 1, 1, 1, 1, 1, 1]

    def never(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(decoding, "decode", never)
    with pytest.raises(UserError, match="out of memory while decoding a single row"):
        decode_all(model, mixed, NEW, frozenset(), 6)


def test_batch_sizes_are_few_and_at_most_a_third_of_one_is_idle() -> None:
    assert len({rounded_up(rows) for rows in range(1, 1025)}) <= 20
    assert all(0 <= 1 - rows / rounded_up(rows) <= 1 / 3 for rows in range(1, 1025))
