"""Our block loop is transformers' forward pass; fused kernels in it change nothing; what runs is named."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from conftest import observed
from torch import Tensor, nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedModel

from lkv import kernels, registry
from lkv.cache.evictable import entries, prompt_cache
from lkv.eviction.decode import decode
from lkv.eviction.layerwise import prefill_layerwise
from lkv.eviction.pipeline import evict_to
from lkv.eviction.single_pass import prefill_for
from lkv.interface import Answering, Attended
from lkv.lookahead.adapter import LookaheadKV
from lkv.model import forward
from lkv.model.architecture import ours
from lkv.model.attention import Pass
from lkv.model.forward import implementation, states


def through(model: PreTrainedModel, ids: Tensor, adapter: Any = None, carried: Pass | None = None) -> Any:
    """Hidden states and the cache that a pass leaves."""
    cache = prompt_cache(model.config)
    positions = torch.arange(ids.shape[1])[None]
    hidden = model.get_input_embeddings()(ids)
    with torch.no_grad():
        return states(model, hidden, positions, cache, carried or Pass(), adapter), cache


def test_the_loop_is_transformers_forward_and_fills_the_same_cache(model: Any, prompt: Tensor) -> None:
    assert ours(model)
    with torch.no_grad():
        truth = model.base_model(prompt, use_cache=True)
    hidden, cache = through(model, prompt)
    torch.testing.assert_close(hidden, truth.last_hidden_state, rtol=1e-4, atol=1e-5)
    for layer in range(3):
        for own, other in zip(entries(cache, layer), entries(truth.past_key_values, layer), strict=True):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


def test_lora_in_the_loop_is_lora_by_hooks(
    model: Any, prompt: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = LookaheadKV.create(model, tokens=8, seed=2).requires_grad_(False)
    for b in adapter.lora_b:
        nn.init.normal_(b, std=0.1)
    looped, cache = through(model, prompt, adapter)
    plain, _ = through(model, prompt)
    monkeypatch.setattr(forward, "ours", lambda _: False)
    hooked, other = through(model, prompt, adapter)
    torch.testing.assert_close(looped, hooked, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(entries(cache, 2)[0], entries(other, 2)[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(looped[:, -8:], plain[:, -8:], atol=1e-2)
    assert torch.equal(looped[:, :-8], plain[:, :-8])  # the prompt's rows never see the adapter


def test_both_ways_show_an_observer_the_same_queries_and_keys(
    model: Any, prompt: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seen() -> list[tuple[Tensor, Tensor, float]]:
        shown: list[tuple[Tensor, Tensor, float]] = []

        def note(attended: Attended) -> None:
            shown.append((attended.query, attended.key, attended.scaling))

        through(model, prompt, carried=Pass(observe=note))
        return shown

    own = seen()
    monkeypatch.setattr(forward, "ours", lambda _: False)
    other = seen()
    assert len(own) == len(other) == 3
    for mine, theirs in zip(own, other, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_other_architectures_run_through_transformers_and_are_named_so() -> None:
    config = Gemma3TextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, vocab_size=99,
    )  # fmt: skip
    assert implementation(Gemma3ForCausalLM(config)) == "transformers"
    peculiar = observed("llama")
    assert implementation(peculiar) == "torch"
    attention = peculiar.model.layers[0].self_attn
    attention.q_proj = nn.Sequential(attention.q_proj)  # as PEFT and quantisation do
    assert implementation(peculiar) == "transformers"


# ---- where kernels run ------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Any:
    """A tensor that says it lies on a GPU whose capability is `gpu.capability`."""

    class Pretended:
        capability = (9, 0)
        is_cuda, device, dtype = True, "cuda:0", torch.bfloat16

    kernels._usable.cache_clear()
    kernels._say.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: Pretended.capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Old GPU")
    caplog.set_level(logging.WARNING, "lkv")
    yield Pretended
    kernels._usable.cache_clear()
    kernels._say.cache_clear()


@pytest.mark.parametrize(
    ("changes", "head_dim", "why"),
    [
        ({"capability": (7, 5)}, 64, "Old GPU is older than compute capability 8.0"),
        ({"dtype": torch.float64}, 64, "they do not take torch.float64"),
        ({}, 320, "heads of 320 are wider than 256"),
    ],
)
def test_what_the_kernels_do_not_take_is_said_once_and_runs_in_plain_torch(
    changes: dict[str, Any], head_dim: int, why: str, gpu: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in changes.items():
        setattr(gpu, name, value)
    assert [kernels.usable(gpu, head_dim) for _ in range(3)] == [False] * 3
    assert caplog.messages == [f"fused kernels are off, plain torch runs instead: {why}"]


def test_without_triton_the_reason_is_said(
    gpu: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "triton", None)
    assert not kernels.usable(gpu) and not kernels.usable(gpu, 64)
    assert caplog.messages == ["fused kernels are off, plain torch runs instead: triton is not installed"]


def test_a_gpu_that_has_all_of_it_runs_them_and_a_cpu_never_does(
    gpu: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    assert kernels.usable(gpu, 128)
    assert not kernels.usable(torch.zeros(1))
    assert not caplog.messages


@pytest.mark.parametrize(
    ("family", "name"), [("llama", "snapkv"), ("llama", "laq"), ("qwen3", "lookaheadkv")]
)
def test_the_fused_pipeline_keeps_and_answers_what_plain_torch_does(
    family: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    if torch.cuda.is_available():
        pytest.skip("the interpreter is off where there is a GPU; test_kernels.py runs there")
    model = observed(family)
    adapter = LookaheadKV.create(model, tokens=8, seed=2).requires_grad_(False)
    for b in adapter.lora_b:
        nn.init.normal_(b, std=0.1)
    method = registry.get(name, adapter)
    ids = torch.randint(0, 250, (1, 70), generator=torch.Generator().manual_seed(4))

    def answer() -> tuple[list[Tensor], list[int]]:
        prefilled = prefill_for(model, ids, method, Answering(max_tokens=4))
        [row] = evict_to(prefilled, method, 40)
        return list(row.keys), decode(model, [row], 4).tokens[0]

    keys, tokens = answer()
    monkeypatch.setattr(kernels, "usable", lambda tensor, head_dim=0: True)
    fused_keys, fused_tokens = answer()
    assert fused_tokens == tokens
    for own, other in zip(fused_keys, keys, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)
    if name == "lookaheadkv":
        _, [row] = prefill_layerwise(model, ids, method, 40)
        torch.testing.assert_close(list(row.keys), keys, rtol=1e-3, atol=1e-4)
