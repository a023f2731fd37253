"""Promises of the second pass: it sees what a tail that rides along sees, whatever was read before."""

from __future__ import annotations

import gc
import time
from typing import Any
from weakref import ref

import pytest
import torch
from conftest import observed
from test_lookahead import llama, trained_like
from torch import Tensor

from lkv import kernels, registry
from lkv.eviction import answer, decoder
from lkv.eviction import observe as observing
from lkv.eviction import second_pass as second
from lkv.eviction.extend import extend
from lkv.eviction.generate import generate
from lkv.eviction.hooks import evicting
from lkv.eviction.pipeline import evict_to, observe
from lkv.eviction.prefill import observe_tail, prefill
from lkv.eviction.prefilled import Prefilled
from lkv.eviction.second_pass import SecondPass
from lkv.eviction.select import select
from lkv.eviction.single_pass import prefill_for, score_errors
from lkv.interface import PromptRows, Tail
from lkv.measure.latency import latency
from lkv.measure.latency_rows import ADDED
from lkv.model.load import Loaded
from lkv.model.random_weights import tiny_tokenizer

LENGTHS = (150, 64, 97, 128)  # one storage, longer prompts first: what they leave must not be seen


def drawn(length: int, batch: int = 1) -> Tensor:
    return torch.randint(0, 250, (batch, length), generator=torch.Generator().manual_seed(length))


def close(ours: Any, theirs: Any, bound: float = 4e-6) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        assert (mine - other).abs().max() <= bound


def bound_by_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a small model is on a GPU."""
    monkeypatch.setattr(second, "launch_bound", lambda model, batch, tokens: batch == 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prompts_of_any_length_see_through_one_storage_what_a_tail_that_rides_along_sees(
    model: Any, dtype: torch.dtype
) -> None:
    model.to(dtype)
    adapter = trained_like(model).to(dtype).requires_grad_(False)
    tail, passing = adapter.tail(), None
    for length in LENGTHS:
        plain, _ = prefill(model, drawn(length))
        before = [layer.keys.clone() for layer in plain.cache.layers]
        passing = passing or SecondPass(model, tail, plain.cache, 160)
        passing.load(plain, tail)
        _, riding = prefill(model, drawn(length), tail=tail)
        close(passing.run()[..., :length], riding)
        close(second.observe_tail(plain, tail), riding)
        for layer, keys in zip(plain.cache.layers, before, strict=True):
            assert torch.equal(layer.keys, keys), "the prompt's cache was written to"
    assert [len(passes) for passes in decoder.pool(model).second_passes.values()] == [1]
    assert second.held_bytes(model) > 0
    decoder.forget(model)
    assert second.held_bytes(model) == 0


def test_another_adapters_tokens_and_more_observers_than_one_kind_look_alike(
    model: Any, prompt: Tensor
) -> None:
    plain, _ = prefill(model, prompt)
    for seed, tokens in ((3, 6), (4, 17)):
        adapter = trained_like(model, seed=seed, tokens=tokens).requires_grad_(False)
        for over in ("mean", "max"):
            tail = Tail(adapter.tokens[None], adapter=adapter, reduction=over)
            close(second.observe_tail(plain, tail), observe_tail(plain, tail))


@pytest.mark.parametrize("recipe", ["lookaheadkv", "beside"])
def test_the_pipeline_keeps_what_it_keeps_of_a_single_pass(
    model: Any, prompt: Tensor, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = trained_like(model).requires_grad_(False)
    method = adapter.method(extra_rows=PromptRows(8) if recipe == "beside" else None)
    prefilled = prefill_for(model, prompt, method)
    assert prefilled.scores is not None
    [truth] = evict_to(prefilled, method, 40)
    bound_by_launches(monkeypatch)
    monkeypatch.setattr(observing, "observe_tail", None)  # not the eager pass
    prefilled = prefill_for(model, prompt, method)
    assert prefilled.scores is None
    [row] = evict_to(prefilled, method, 40)
    assert row.token == truth.token and row.position == truth.position
    for mine, theirs in zip((*row.keys, *row.values), (*truth.keys, *truth.values), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-5)


def test_a_follow_up_turn_on_an_evicted_cache_is_looked_at_where_it_stands(
    model: Any, prompt: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = trained_like(model).requires_grad_(False)
    method = adapter.method()
    prefilled, _ = prefill(model, prompt)
    kept = select(observe(prefilled, method, [40])[0], method.recipe, 40, prefilled.kv_heads)
    whole = extend(prefilled, kept, drawn(30))
    assert whole.length > whole.stored(0)
    [truth] = observe(whole, method, [40])
    bound_by_launches(monkeypatch)
    monkeypatch.setattr(observing, "observe_tail", None)
    [ours] = observe(whole, method, [40])
    close(ours, truth)


def test_answers_are_the_same_through_the_engine_and_through_the_models_own_generate(
    model: Any, prompt: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = trained_like(model).requires_grad_(False).method()
    truth = generate(model, prompt, method, 40, 12)
    bound_by_launches(monkeypatch)
    monkeypatch.setattr(observing, "observe_tail", None)
    ours = generate(model, prompt, method, 40, 12)
    assert ours.tokens == truth.tokens
    assert (ours.kept, ours.cache_bytes, ours.full_cache_bytes) == (
        truth.kept,
        truth.cache_bytes,
        truth.full_cache_bytes,
    )
    with evicting(model, method, 40):
        out = model.generate(prompt, max_new_tokens=12, do_sample=False)
    own = out[0, prompt.shape[1] :].tolist()
    assert own[: len(ours.tokens)] == ours.tokens


def test_latency_counts_all_of_it_as_what_the_method_adds(
    prompt: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Loaded(observed("llama"), tiny_tokenizer(), "tiny", "0", frozenset())
    method = trained_like(loaded.model).requires_grad_(False).method()
    bound_by_launches(monkeypatch)
    looked: list[float] = []

    def slow(prefilled: Prefilled, tail: Tail) -> Any:
        start = time.perf_counter()
        time.sleep(0.05)
        seen = real(prefilled, tail)
        looked.append(time.perf_counter() - start)
        return seen

    real = second.observe_tail
    monkeypatch.setattr(second, "observe_tail", slow)
    given = {prompt.shape[1]: prompt[0].tolist()}, [None, method], [48], {prompt.shape[1]: 1}, 0, "s"
    [rows] = latency(loaded, *given, ways=("whole", "layerwise"))
    whole, layered = (
        {row["phase"]: row for row in rows if row["implementation"] == f"torch, {name}"}
        for name in ("second pass", "single pass, layer by layer")
    )
    assert not {"rows", "lora"} & set(whole) and {"rows", "lora"} <= set(layered)
    assert len(looked) == 1 and whole["observe"]["median_ms"] >= 1e3 * looked[0]
    added = sum(row["median_ms"] for phase, row in whole.items() if phase in ADDED)
    assert whole["total"]["overhead_ms"] == pytest.approx(added)


def test_a_budget_that_evicts_nothing_counts_no_rows_that_did_not_ride_along(
    prompt: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Loaded(observed("llama"), tiny_tokenizer(), "tiny", "0", frozenset())
    method, length = trained_like(loaded.model).requires_grad_(False).method(), prompt.shape[1]
    given = {length: prompt[0].tolist()}, [None, method], [length], {length: 1}, 0, "s"
    for name in ("single pass", "second pass"):
        [rows] = latency(loaded, *given, ways=("layerwise",))
        phases = {row["phase"] for row in rows if row["implementation"].startswith(f"torch, {name}")}
        assert "total" in phases and ("rows" in phases) == (name == "single pass")
        bound_by_launches(monkeypatch)


def test_a_rotation_that_asks_for_the_longest_position_is_not_captured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = observed("llama")
    monkeypatch.setattr(second, "implementation", lambda _: "fused")
    assert second.launch_bound(model, 1, 8)
    monkeypatch.setitem(model.config.rope_parameters, "rope_type", "dynamic")
    assert not second.launch_bound(model, 1, 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captures need a GPU")
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_from_the_second_prompt_of_a_width_on_a_graph_sees_what_a_riding_tail_sees(mode: Any) -> None:
    model = observed("llama").to("cuda")
    adapter = trained_like(model).requires_grad_(False)
    tail = adapter.tail()
    for at, length in enumerate(LENGTHS):
        with mode():
            plain, riding = prefill(model, drawn(length).to("cuda"), tail=tail)
            close(second.observe_tail(plain, tail), riding, 1e-3)
        [passing] = decoder.pool(model).second_passes[adapter].values()
        assert (passing.graph is not None) == (at > 0)


def test_what_a_second_pass_does_not_take_is_looked_at_as_before(
    prompt: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = observed("llama")
    adapter = trained_like(model).requires_grad_(False)
    plain, _ = prefill(model, prompt)
    assert not second.can_observe(plain, adapter.tail()), "a CPU is not bound by launches"
    bound_by_launches(monkeypatch)
    assert second.can_observe(plain, adapter.tail())
    two, _ = prefill(model, torch.cat([prompt, prompt]))
    assert not second.can_observe(two, adapter.tail(2)), "two prompts"
    assert prefill_for(model, two.ids, adapter.method()).scores is not None, "they let a tail ride along"
    for tail in (Tail(prompt[:, :4]), Tail(adapter.tokens[None]), answer.answer_tail(plain)):
        assert not second.can_observe(plain, tail), "not the same tail after every prompt"
    pyramid = registry.get("pyramidkv")
    seen, _ = prefill(model, prompt, pyramid.rows)
    [importance] = observe(seen, pyramid, [40])
    uneven = extend(seen, select(importance, pyramid.recipe, 40, seen.kv_heads), drawn(5))
    assert not second.can_observe(uneven, adapter.tail()), "layers of unequal length"
    close(observe(uneven, adapter.method(), [40])[0], observe_tail(uneven, adapter.tail()))


@pytest.mark.parametrize(
    ("name", "sizes", "longest"),
    [
        ("SmolLM2-135M", (576, 1536, 9, 3, 64), 8192),
        ("Llama-3.2-1B", (2048, 8192, 32, 8, 64), 4096),
        ("Llama-3.1-8B", (4096, 14336, 32, 8, 128), 1024),
    ],
)
def test_small_models_are_bound_by_launches_and_big_ones_by_work(
    name: str, sizes: tuple[int, ...], longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, intermediate, heads, kv_heads, dim = sizes
    model = llama(hidden, intermediate, 2, heads, kv_heads, dim, 100)
    assert not second.launch_bound(model, 1, 8)
    monkeypatch.setattr(second, "implementation", lambda _: "fused")
    assert second.launch_bound(model, 1, longest)
    assert not second.launch_bound(model, 2, 8)
    assert second.launch_bound(model, 1, 2 * longest) == (name == "SmolLM2-135M")
    assert not second.launch_bound(model, 1, 16 * longest)


def test_neither_model_nor_adapter_is_kept_alive_by_what_was_captured_for_them(prompt: Tensor) -> None:
    model = observed("llama")
    adapter = trained_like(model).requires_grad_(False)
    plain: Prefilled | None = prefill(model, prompt)[0]
    assert plain is not None
    passing = SecondPass(model, adapter.tail(), plain.cache, 160)
    decoder.pool(model).second_passes.setdefault(adapter, {})[6, "mean", 160] = passing
    assert second.held_bytes(model) == passing.storage.numel() * 4
    gone = ref(adapter), ref(model)
    del adapter
    gc.collect()
    assert gone[0]() is None and second.held_bytes(model) == 0
    del model, plain
    gc.collect()
    assert gone[1]() is None


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_fused_second_pass_sees_what_plain_torch_sees(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    if torch.cuda.is_available():
        pytest.skip("the interpreter is off where there is a GPU")
    model = observed(family)
    adapter = trained_like(model, tokens=8).requires_grad_(False)
    tail, passing = adapter.tail(), None
    for length in (90, 70):
        plain, riding = prefill(model, drawn(length), tail=tail)
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "usable", lambda tensor, head_dim=0: True)
            passing = passing or SecondPass(model, tail, plain.cache, 96)
            passing.load(plain, tail)
            close(passing.run()[..., :length], riding, 1e-4)
            bound_by_launches(patch)
            patch.setattr(second, "LEAST_WIDTH", 64)
            found = score_errors(model, drawn(length), adapter.method(), {0, 2})
            assert len(found) == 4 and max(found) <= 1e-3
