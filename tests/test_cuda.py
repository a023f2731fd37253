"""What only a GPU can show: captured passes hear of hooks, adapters and weights; FlashAttention's path."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import zoo
from test_architectures import BUDGET, TRAINING_FREE
from test_strange_models import NEW, ROPES, SNAPKV, lora, own
from torch import Tensor, nn
from zoo import EVICTED, LEARNING

from lkv import registry
from lkv.eviction.compact import compact
from lkv.eviction.decode import decode_all
from lkv.eviction.generate import generate
from lkv.eviction.hooks import evicting
from lkv.eviction.prefill import prefill
from lkv.lookahead.adapter import LookaheadKV
from lkv.model import attention
from lkv.model.attention import FLASH, SDPA
from lkv.model.fetch import obtain
from lkv.model.load import load

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def prompt(length: int = 150) -> Tensor:
    return torch.randint(3, 250, (1, length), generator=torch.Generator().manual_seed(5)).cuda()


def on_gpu(name: str, **changes: Any) -> Any:
    return zoo.build(name, **changes).cuda()


@pytest.mark.parametrize("name", EVICTED)
def test_every_architecture_answers_on_a_gpu_as_its_own_generate(name: str) -> None:
    model, ids = on_gpu(name), prompt()
    assert generate(model, ids, None, 1, NEW).tokens == own(model, ids)
    methods = [registry.get(how, draft="self") for how in TRAINING_FREE]
    if name in LEARNING:
        methods.append(LookaheadKV.create(model, seed=3).requires_grad_(False).method())
    for method in methods:
        with evicting(model, method, BUDGET, NEW):
            expected = own(model, ids)
        for _ in range(2):  # captured, then replayed
            done = generate(model, ids, method, BUDGET, NEW)
            assert (done.tokens, done.kept) == (expected, BUDGET), method.name


@pytest.mark.parametrize("name", ["Llama", "Mistral"])
def test_a_hook_is_heard_after_a_capture_and_forgotten_with_it(name: str) -> None:
    model, ids = on_gpu(name), prompt()
    plain = generate(model, ids, SNAPKV, BUDGET, NEW).tokens
    shift = torch.randn(64, generator=torch.Generator().manual_seed(2)).cuda() * 0.6
    hook = model.model.layers[1].mlp.register_forward_hook(lambda _m, _i, out: out + shift)
    with evicting(model, SNAPKV, BUDGET):
        steered = own(model, ids)
    assert steered != plain
    assert generate(model, ids, SNAPKV, BUDGET, NEW).tokens == steered
    hook.remove()
    assert generate(model, ids, SNAPKV, BUDGET, NEW).tokens == plain


def test_other_weights_are_heard_after_a_capture() -> None:
    model, ids = on_gpu("Llama"), prompt()
    before = generate(model, ids, SNAPKV, BUDGET, NEW).tokens
    linear = model.model.layers[1].mlp.down_proj
    linear.weight = nn.Parameter(linear.weight.detach() * -2, requires_grad=False)
    with evicting(model, SNAPKV, BUDGET):
        expected = own(model, ids)
    assert expected != before
    assert generate(model, ids, SNAPKV, BUDGET, NEW).tokens == expected


def test_an_adapter_of_peft_is_heard_each_time_it_is_switched() -> None:
    model, ids = on_gpu("Llama"), prompt()
    plain = generate(model, ids, SNAPKV, BUDGET, NEW).tokens
    wrapped = lora(model)
    with evicting(wrapped, SNAPKV, BUDGET):
        adapted = own(wrapped, ids)
    assert adapted != plain
    assert generate(wrapped, ids, SNAPKV, BUDGET, NEW).tokens == adapted
    with wrapped.disable_adapter():
        assert generate(wrapped, ids, SNAPKV, BUDGET, NEW).tokens == plain
    assert generate(wrapped, ids, SNAPKV, BUDGET, NEW).tokens == adapted


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_length_dependent_rotation_is_not_captured(kind: str) -> None:
    model = on_gpu("Llama", **ROPES[kind])
    adapter = LookaheadKV.create(model, seed=3).requires_grad_(False)
    for length in (100, 200, 125):
        ids = prompt(length)
        expected = own(on_gpu("Llama", **ROPES[kind]), ids)
        assert generate(model, ids, adapter.method(), length, NEW).tokens == expected


def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, causal: bool, return_attn_probs: bool
) -> tuple[Tensor, Tensor, None]:
    """FlashAttention's function in plain float32: causality aligned to the end, heads grouped."""
    assert causal and return_attn_probs and q.is_cuda
    queries, keys, values = (tensor.float().transpose(1, 2) for tensor in (q, k, v))
    group = queries.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    logits = queries @ keys.transpose(-1, -2) * softmax_scale
    rows, stored = logits.shape[-2:]
    seen = torch.ones(rows, stored, dtype=torch.bool, device=q.device).tril(stored - rows)
    logits = logits.masked_fill(~seen, float("-inf"))
    out = (logits.softmax(-1) @ values).transpose(1, 2).to(q.dtype)
    return out, logits.logsumexp(-1), None


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A flash-attn package whose function is the plain one; counts its calls."""
    calls: list[int] = []

    def counted(*given: Any, **settings: Any) -> Any:
        calls.append(1)
        return flash_attn_func(*given, **settings)

    monkeypatch.setattr(attention, "_has_flash_attn", lambda: True)
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_func=counted))
    return calls


def test_a_model_loads_with_flash_attn_and_attends_through_it(flash_attn: list[int], tmp_path: Path) -> None:
    spec = {"name": "m", "licence": "x", "source": {"kind": "random", "family": "llama"}}
    obtain(spec, tmp_path / "m")
    loaded = load(tmp_path / "m", torch.device("cuda"), "bfloat16")
    assert loaded.backend == "flash_attention_2"
    generate(loaded.model, prompt(), SNAPKV, BUDGET, NEW)
    assert flash_attn


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Mistral", "Gemma 3"])
def test_through_flash_attn_logits_are_sdpas(name: str, flash_attn: list[int]) -> None:
    model, ids = on_gpu(name), prompt()
    with torch.no_grad():
        truth = model(ids).logits
        model.to(torch.bfloat16).set_attn_implementation(SDPA)
        plain = (model(ids).logits.float() - truth).norm()
        model.set_attn_implementation(FLASH)
        flashed = (model(ids).logits.float() - truth).norm()
    assert flash_attn
    assert flashed <= 1.2 * plain <= 0.1 * truth.norm()
    assert generate(model, ids, SNAPKV, BUDGET, NEW).kept == BUDGET


def test_rows_are_announced_as_they_end_each_once_with_their_whole_answer() -> None:
    model = on_gpu("Llama")
    with attention.observable(model), torch.no_grad():
        rows = [row for n in (60, 90, 120, 150) for row in compact(prefill(model, prompt(n))[0], None)]
        alone = [decode_all(model, [row], 40, frozenset(), 1)[0] for row in rows]
        stop = frozenset({alone[0][9], alone[1][20], alone[2][30]})
        expected = [decode_all(model, [row], 40, stop, 1)[0] for row in rows]
        told: list[tuple[int, list[int]]] = []
        assert decode_all(model, rows, 40, stop, 3, lambda r, tokens: told.append((r, tokens))) == expected
    assert sorted(told) == list(enumerate(expected))
