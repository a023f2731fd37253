"""Promises to authors of methods: keys and values are seen, entry points register, errors are clear."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from conftest import observed

from lkv import registry
from lkv.cache.evictable import entries
from lkv.errors import UserError
from lkv.eviction.generate import generate
from lkv.eviction.pipeline import observe, select_entries
from lkv.eviction.prefill import prefill
from lkv.interface import Method, Prompt, PromptRows, Ranking, Recipe, Recorded, StoredLayer


def small_keys_first(stored: StoredLayer) -> torch.Tensor:
    """Knorm (Devoto et al. 2024, arXiv 2406.11430): keys of small norm are kept; no observers."""
    return -stored.key.float().norm(dim=-1)


KNORM = Method("knorm", Recipe(pool=None), Ranking(small_keys_first))


def prompt() -> torch.Tensor:
    return torch.randint(0, 256, (1, 90), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> str:
    """As an entry point of the group lkv.methods would be: in the table of names."""
    module = ModuleType("somebodys_knorm")
    module.METHOD = KNORM  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somebodys_knorm", module)
    monkeypatch.setitem(registry.METHODS, "knorm", "somebodys_knorm:METHOD")
    registry.described.cache_clear()
    return "knorm"


def test_a_ranking_by_keys_keeps_the_smallest_norms_in_float64(registered: str) -> None:
    prefilled, _ = prefill(observed("llama"), prompt())
    [(kept, _)] = select_entries(prefilled, registry.get(registered), [20])
    assert kept is not None
    for layer, index in zip(prefilled.full_layers, kept, strict=True):
        norms = entries(prefilled.cache, layer)[0].double().norm(dim=-1)
        truth = norms.topk(20, largest=False).indices.sort(-1).values
        assert torch.equal(index, truth)


def test_an_own_method_answers_from_its_cache(registered: str) -> None:
    answer = generate(observed("llama"), prompt(), registry.get(registered), 20, 4)
    assert answer.kept == 20 and len(answer.tokens) == 4


def test_a_registered_method_that_cannot_be_used_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    for place, said in (
        ("nowhere_at_all:METHOD", "cannot be imported from nowhere_at_all:METHOD"),
        ("lkv.interface:Recipe", r"is a type; give an lkv\.interface\.Method"),
        ("baselines.snapkv:METHOD", "calls itself 'snapkv', and is registered as 'mine'"),
    ):
        monkeypatch.setitem(registry.METHODS, "mine", place)
        registry.described.cache_clear()
        with pytest.raises(UserError, match=said):
            registry.get("mine")
    registry.described.cache_clear()


def test_a_function_that_the_journal_cannot_name_needs_an_identity() -> None:
    with pytest.raises(ValueError, match=r"method 'm': observers is .* give the method an identity"):
        Method("m", Recipe(), lambda prompt, budgets: [])
    Method("m", Recipe(), lambda prompt, budgets: [], identity="a hash")


def test_rows_that_the_prefill_did_not_record_are_named() -> None:
    prefilled, _ = prefill(observed("llama"), prompt())
    with pytest.raises(ValueError, match=r"m needs \[PromptRows\(last=8.*recorded during the prefill"):
        observe(prefilled, Method("m", Recipe(), PromptRows(8)), [20])


def drafting(prompt: Prompt, budgets: Sequence[int]) -> list[Recorded]:
    return prompt.draft(budgets, 4)


def test_a_method_that_drafts_names_the_method_that_evicts_for_it() -> None:
    prefilled, _ = prefill(observed("llama"), prompt(), [PromptRows(32)])
    method = Method("m", Recipe(), drafting)
    with pytest.raises(ValueError, match="m drafts, but names no method in drafts_on"):
        observe(prefilled, method, [40])
    [importance] = observe(prefilled, replace(method, drafts_on=registry.get("snapkv")), [40])
    assert importance[0].shape == (1, 8, 90)
