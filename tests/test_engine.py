"""Promises of the engine: eviction changes the cache and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import observed
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from lkv import registry
from lkv.cache.evictable import full_layers, prompt_cache
from lkv.errors import UserError
from lkv.eviction.answer import answer_tail, full_cache_answers
from lkv.eviction.compact import compact
from lkv.eviction.decode import decode, decode_all
from lkv.eviction.extend import extend
from lkv.eviction.generate import generate
from lkv.eviction.hooks import evicting
from lkv.eviction.layerwise import prefill_layerwise
from lkv.eviction.pipeline import evict, evict_to, observe
from lkv.eviction.prefill import observe_tail, prefill, prefill_many
from lkv.eviction.select import select
from lkv.eviction.single_pass import prefill_for
from lkv.interface import Answering, PromptRows, Recipe
from lkv.lookahead.adapter import LookaheadKV
from lkv.model.attention import SDPA, observable

NEW = 12


def every_method(model: Any) -> list[Any]:
    adapter = LookaheadKV.create(model, tokens=8, seed=3)
    return [registry.get(name, adapter, draft="self") for name in registry.METHODS]


@contextmanager
def logits_of(model: Any) -> Iterator[list[Tensor]]:
    """The logits of each forward pass inside."""
    seen: list[Tensor] = []
    hook = model.lm_head.register_forward_hook(lambda _m, _i, out: seen.append(out.detach()))
    try:
        yield seen
    finally:
        hook.remove()


def masked_full_cache(model: Any, ids: Tensor, prompt: int, kept: list[Tensor]) -> Tensor:
    """The truth to compare with: transformers' eager attention over the whole sequence, where rows after the
    prompt cannot see the prompt entries that were not kept in their KV head. Returns logits [1, T, V]."""
    total, heads = ids.shape[1], model.config.num_attention_heads
    causal = torch.ones(total, total, dtype=torch.bool).tril()

    def hide(layer: int) -> Any:
        visible = causal.repeat(heads, 1, 1)
        group = heads // kept[layer].shape[1]
        for head in range(heads):
            gone = torch.ones(prompt, dtype=torch.bool)
            gone[kept[layer][0, head // group]] = False
            visible[head, prompt:, :prompt] &= ~gone
        mask = torch.zeros(1, heads, total, total).masked_fill(~visible, float("-inf"))
        return lambda _m, args, kwargs: (args, {**kwargs, "attention_mask": mask})

    hooks = [
        layer.self_attn.register_forward_pre_hook(hide(i), with_kwargs=True)
        for i, layer in enumerate(model.model.layers)
    ]
    model.set_attn_implementation("eager")
    try:
        return model(ids, use_cache=False).logits
    finally:
        model.set_attn_implementation(SDPA)
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("schedule", ["uniform", "pyramid"])
def test_evicted_decode_equals_full_cache_with_the_entries_masked(model, prompt, schedule):
    recipe = Recipe(window=8, schedule=schedule)
    prefilled, _ = prefill(model, prompt, [PromptRows(8)])
    kept = select(prefilled.recorded[PromptRows(8)], recipe, 40, prefilled.kv_heads)
    assert kept is not None
    assert len({k.shape[-1] for k in kept}) == (1 if schedule == "uniform" else 3)
    with logits_of(model) as seen:
        tokens = decode(model, compact(prefilled, kept), NEW).tokens[0]
    sequence = torch.cat([prompt, torch.tensor([tokens])], 1)
    truth = masked_full_cache(model, sequence, prompt.shape[1], kept)
    ours = torch.cat(seen, 1)
    assert (ours - truth[:, prompt.shape[1] : -1]).abs().max() <= 2e-5
    whole = decode(model, compact(prefilled, None), NEW)
    assert whole.tokens[0] != tokens, "the eviction changed nothing: the test would prove nothing"


def test_a_budget_that_holds_the_prompt_gives_the_models_own_generate(model, prompt):
    truth = model.generate(prompt, max_new_tokens=NEW, do_sample=False)[0, prompt.shape[1] :].tolist()
    for method in every_method(model):
        for budget in (prompt.shape[1], 1000):
            done = generate(model, prompt, method, budget, NEW)
            assert done.tokens == [t for t in truth if t != 257], method.name
            assert done.kept == prompt.shape[1]


def test_the_look_leaves_no_trace(model, prompt):
    prefilled, _ = prefill(model, prompt, [row for m in every_method(model) for row in m.rows])
    before = [(layer.keys.clone(), layer.values.clone()) for layer in prefilled.cache.layers]
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    for method in every_method(model):
        observe(prefilled, method, [40])
        for layer, (keys, values) in zip(prefilled.cache.layers, before, strict=True):
            assert torch.equal(layer.keys, keys), method.name
            assert torch.equal(layer.values, values), method.name
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks


def test_first_token_is_the_full_models_and_every_method_keeps_its_budget(model, prompt):
    truth = int(model(prompt).logits[0, -1].argmax())
    for method in every_method(model):
        prefilled, _ = prefill(model, prompt, method.rows)
        [[row]] = evict(prefilled, method, [40])
        assert row.token == truth
        assert row.position == prompt.shape[1]
        assert sum(k.shape[1] for k in row.keys) == 40 * len(row.keys), method.name
        assert row.bytes == 2 * 4 * 40 * 3 * 2 * 16


def test_short_prompts_are_left_whole_before_any_schedule(model):
    short = torch.randint(0, 256, (1, 40))
    method = registry.get("pyramidkv")
    prefilled, _ = prefill(model, short, method.rows)
    [[row]] = evict(prefilled, method, [40])
    assert [k.shape[1] for k in row.keys] == [40, 40, 40]


def test_rows_decoded_together_equal_rows_decoded_alone(model):
    prompts = [torch.randint(0, 256, (1, n), generator=torch.Generator().manual_seed(n)) for n in (90, 150)]
    rows = []
    for ids in prompts:
        for name, budget in (("snapkv", 40), ("pyramidkv", 48), ("streamingllm", 20)):
            method = registry.get(name)
            prefilled, _ = prefill(model, ids, method.rows)
            rows += evict(prefilled, method, [budget])[0]
        rows += compact(prefilled, None)
    together = decode(model, rows, NEW).tokens
    alone = [decode(model, [row], NEW).tokens[0] for row in rows]
    assert together == alone
    assert decode_all(model, rows, NEW, frozenset(), at_once=3) == alone


def test_several_tokens_at_once_after_eviction_equal_one_by_one(model, prompt):
    after = torch.randint(0, 256, (1, 6))
    logits = []
    for steps in (1, 6):
        prefilled, _ = prefill(model, prompt, [PromptRows(8)])
        kept = select(prefilled.recorded[PromptRows(8)], Recipe(window=8, schedule="pyramid"), 40, 2)
        cache = prefilled.cache
        for layer, index in zip(cache.layers, kept or [], strict=True):
            layer.keep(index)
        assert cache.get_seq_length() == prompt.shape[1]
        outs = [
            model(after[:, i : i + 6 // steps], past_key_values=cache).logits for i in range(0, 6, 6 // steps)
        ]
        logits.append(torch.cat(outs, 1))
    assert (logits[0] - logits[1]).abs().max() <= 2e-5


def test_the_models_own_generate_evicts_inside_the_context(model, prompt):
    for method in every_method(model):
        expected = generate(model, prompt, method, 40, NEW).tokens
        with evicting(model, method, 40, answer_tokens=NEW):
            out = model.generate(prompt, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True)
        assert [t for t in out.sequences[0, prompt.shape[1] :].tolist() if t != 257] == expected, method.name
        stored = [out.past_key_values.layers[i].stored for i in full_layers(out.past_key_values)]
        new = out.sequences.shape[1] - prompt.shape[1] - 1
        assert sum(stored) == 3 * (40 + new)


def test_hooks_and_attention_are_gone_after_an_error():
    model = observed("llama")
    model.set_attn_implementation("eager")
    adapter = LookaheadKV.create(model, tokens=8)
    with pytest.raises(RuntimeError, match="boom"), adapter.evicting(model, 40), adapter.hooked(model):
        raise RuntimeError("boom")
    assert model.config._attn_implementation == "eager"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_padded_batches_are_refused():
    model = observed("llama")
    ids = torch.randint(0, 256, (2, 60))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    with pytest.raises(UserError, match="without padding"), evicting(model, registry.get("snapkv"), 40):
        model.generate(ids, attention_mask=mask, max_new_tokens=2)


def test_a_model_whose_attention_shows_nothing_is_refused(prompt):
    model = observed("llama")
    model.set_attn_implementation("sdpa")
    with pytest.raises(UserError, match="observers see nothing"):
        prefill(model, prompt)
    with observable(model):
        prefill(model, prompt)
    assert model.config._attn_implementation == "sdpa"


def hybrid() -> Qwen3ForCausalLM:
    """Two full and two sliding-window layers."""
    config = Qwen3Config(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        use_sliding_window=True,
        sliding_window=24,
        initializer_range=0.1,
        layer_types=["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        made = Qwen3ForCausalLM(config).eval().requires_grad_(False)
    for layer in made.model.layers:
        layer.self_attn.q_proj.weight.data.mul_(2)
        layer.self_attn.k_proj.weight.data.mul_(2)
    made.generation_config.eos_token_id = None
    return made


def test_sliding_window_layers_are_left_alone():
    model = hybrid()
    ids = torch.randint(0, 256, (1, 100), generator=torch.Generator().manual_seed(1))
    truth = model.generate(ids, max_new_tokens=40, do_sample=False)[0, 100:].tolist()
    model.set_attn_implementation(SDPA)
    assert full_layers(prompt_cache(model.config)) == [0, 2]
    for method in every_method(model):
        prefilled, _ = prefill(model, ids, method.rows)
        whole, [row] = evict(prefilled, method, [1000, 40])
        assert [k.shape[1] for k in row.keys][1::2] == [23, 23]
        assert sum(k.shape[1] for k in row.keys[0::2]) == 80, method.name
        # 40 tokens: long enough for new tokens to leave the window again
        assert decode(model, whole, 40).tokens[0] == truth, method.name


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"prompt_lookup_num_tokens": 4}, "one at a time"),
        ({"prefill_chunk_size": 40}, "one at a time"),
        ({"use_cache": False}, "without a cache"),
        ({"cache_implementation": "static"}, "no layer that entries can be dropped from"),
    ],
    ids=["assisted", "chunked", "no cache", "static cache"],
)
def test_ways_to_generate_that_would_go_wrong_silently_are_refused(prompt, settings, why):
    model = observed("llama")
    with pytest.raises(UserError, match=why), evicting(model, registry.get("snapkv"), 40):
        model.generate(prompt, max_new_tokens=8, do_sample=False, **settings)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_engine_works_inside_the_context_too(model, prompt):
    method = registry.get("snapkv")
    expected = generate(model, prompt, method, 40, NEW).tokens
    with evicting(model, method, 64):
        assert generate(model, prompt, method, 40, NEW).tokens == expected


@pytest.mark.parametrize("schedule", ["uniform", "pyramid"])
def test_a_question_read_after_the_eviction_sees_only_what_was_kept(model, prompt, schedule):
    question = torch.randint(0, 256, (1, 9), generator=torch.Generator().manual_seed(11))
    prefilled, _ = prefill(model, prompt, [PromptRows(8)])
    kept = select(
        prefilled.recorded[PromptRows(8)], Recipe(window=8, schedule=schedule), 40, prefilled.kv_heads
    )
    assert kept is not None
    before = [layer.keys.clone() for layer in prefilled.cache.layers]
    asked = extend(prefilled, kept, question)
    assert [asked.stored(i) for i in range(3)] == [k.shape[-1] + 9 for k in kept]
    with logits_of(model) as seen:
        tokens = decode(model, compact(asked, None), NEW).tokens[0]
    sequence = torch.cat([prompt, question, torch.tensor([tokens])], 1)
    truth = masked_full_cache(model, sequence, prompt.shape[1], kept)[:, prompt.shape[1] + 8 : -1]
    assert asked.first.tolist() == [int(truth[0, 0].argmax())]
    assert (torch.cat(seen, 1) - truth[:, 1:]).abs().max() <= 2e-5
    assert all(torch.equal(a, b.keys) for a, b in zip(before, prefilled.cache.layers, strict=True))


def test_a_prompt_read_in_two_parts_is_the_prompt_read_at_once(model, prompt):
    rows = [PromptRows(8)]
    whole, _ = prefill(model, prompt, rows)
    part, _ = prefill(model, prompt[:, :100], rows)
    joined = extend(part, None, prompt[:, 100:], rows)
    assert (joined.first, joined.length) == (whole.first, whole.length)
    for mine, theirs in zip(joined.recorded[rows[0]], whole.recorded[rows[0]], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    for method in every_method(model):
        full, _ = prefill(model, prompt, method.rows)
        again = extend(prefill(model, prompt[:, :100])[0], None, prompt[:, 100:], method.rows)
        if PromptRows(None) not in method.rows:  # H2O's rows are those of the last part alone
            for mine, theirs in zip(
                observe(again, method, [40])[0], observe(full, method, [40])[0], strict=True
            ):
                torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


def test_a_prompt_evicted_twice_keeps_the_budget_and_what_was_dropped_stays_dropped(model, prompt):
    for method in every_method(model):
        prefilled, _ = prefill(model, prompt, method.rows)
        kept = select(observe(prefilled, method, [40])[0], method.recipe, 40, prefilled.kv_heads)
        assert kept is not None
        longer = extend(prefilled, kept, prompt[:, :50], method.rows)
        first = [layer.keys.clone() for layer in longer.cache.layers]
        [[row]] = evict(longer, method, [40])
        assert row.position == 200
        for keys, before in zip(row.keys, first, strict=True):
            assert keys.shape[1] <= 40 or method.recipe.schedule == "pyramid"
            rows_before = {tuple(key) for head in before[0].tolist() for key in head}
            assert all(tuple(key) in rows_before for head in keys.tolist() for key in head)
        assert sum(k.shape[1] for k in row.keys) <= 40 * len(row.keys)


def test_the_oracle_of_a_question_blind_run_is_the_answer_that_follows_the_question(model, prompt):
    context, question = prompt[:, :120], prompt[:, 120:]
    blind, _ = prefill(model, context, answering=Answering(max_tokens=6))
    asked = replace(blind, question=question, first=extend(blind, None, question).first)
    whole, _ = prefill(model, prompt, answering=Answering(max_tokens=6))
    assert full_cache_answers(asked) == full_cache_answers(whole)
    mine = observe_tail(asked, answer_tail(asked))
    theirs = observe_tail(whole, answer_tail(whole))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b[..., :120], rtol=1e-3, atol=1e-6)


def test_a_banned_token_cannot_come_first(model, prompt):
    first = int(prefill(model, prompt)[0].first[0])
    banned, _ = prefill(model, prompt, answering=Answering(banned=frozenset({first})))
    logits = model(prompt).logits[0, -1]
    logits[first] = -torch.inf
    assert banned.first.tolist() == [int(logits.argmax())]


def test_prompts_of_unequal_length_in_one_prefill_are_as_each_alone(model):
    draw = torch.Generator().manual_seed(3)
    prompts = [torch.randint(0, 256, (n,), generator=draw).tolist() for n in (150, 97, 120)]
    rows = [PromptRows(8), PromptRows(32, reduction="max"), PromptRows(None)]
    together = prefill_many(model, prompts, rows, seeds=[4, 5, 6], answering=Answering(max_tokens=7))
    for prompt, seed, mine in zip(prompts, (4, 5, 6), together, strict=True):
        alone, _ = prefill(model, torch.tensor([prompt]), rows, answering=Answering(max_tokens=7))
        assert mine.ids.tolist() == [prompt] and mine.answering == Answering(max_tokens=7, seed=seed)
        assert torch.equal(mine.first, alone.first)
        for layer, theirs in zip(mine.cache.layers, alone.cache.layers, strict=True):
            torch.testing.assert_close(layer.keys, theirs.keys, rtol=0, atol=2e-5)
            torch.testing.assert_close(layer.values, theirs.values, rtol=0, atol=2e-5)
        for row in rows:
            for seen, theirs in zip(mine.recorded[row], alone.recorded[row], strict=True):
                torch.testing.assert_close(seen, theirs, rtol=1e-4, atol=1e-6)
        method = registry.get("snapkv")
        mine.recorded[PromptRows(32)] = alone.recorded[PromptRows(32)] = mine.recorded[rows[0]]
        [[ours]], [[theirs]] = evict(mine, method, [40]), evict(alone, method, [40])
        assert decode(model, [ours], NEW).tokens == decode(model, [theirs], NEW).tokens


@pytest.mark.parametrize("name", ["snapkv", "pyramidkv", "h2o", "lookaheadkv", "laq", "random"])
def test_layer_by_layer_and_scored_prefills_keep_what_evict_keeps(model, prompt, name):
    method = next(m for m in every_method(model) if m.name == name)
    prefilled, _ = prefill(model, prompt, method.rows)
    [[truth]] = evict(prefilled, method, [40])
    scored = prefill_for(model, prompt, method)
    [whole] = evict_to(scored, method, 40)
    after, [layered] = prefill_layerwise(model, prompt, method, 40)
    for row in (whole, layered):
        assert row.token == truth.token and row.position == truth.position
        for mine, theirs in zip((*row.keys, *row.values), (*truth.keys, *truth.values), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-5)
    if name != "laq" and name != "random":  # these look at the whole cache
        stored = [layer.keys.shape[2] for layer in after.cache.layers]
        assert stored == [keys.shape[1] for keys in truth.keys], "the cache itself was not evicted"
    [short] = evict_to(scored, method, 1000)
    assert short.width == prompt.shape[1]
    _, [short] = prefill_layerwise(model, prompt, method, 1000)
    assert short.width == prompt.shape[1]
