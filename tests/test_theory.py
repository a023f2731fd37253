"""The paper's model of the device: operations as torch counts them, figures near the paper's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from lkv.model.flops import prefill_flop, row_share, training_flop
from lkv.model.random_weights import tiny_model
from lkv.model.shape import Shape, shape_of
from lkv.model.theory import compact_s, decode_s, prefill_s, scores_s
from lkv.registry import described
from lkv.study import schema

ROOT = Path(__file__).parents[1]
NAMED = [
    path.stem
    for path in sorted((ROOT / "config/models").glob("*.yaml"))
    if schema.read_spec(path)["shape"]
]  # fmt: skip


def shape(name: str) -> Shape:
    return Shape(**schema.model_spec(name, ROOT)["shape"])


B8, B1 = shape("llama-3.1-8b-instruct"), shape("llama-3.2-1b-instruct")


def overhead_s(method: str, *sizes: Any, draft: Shape | None = None) -> float | None:
    theory = described(method).theory
    return theory(*sizes, draft) if theory else None


def operations(model: Any, tokens: int) -> int:
    """Of the blocks in a forward pass with attention written out (its full square)."""
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model.base_model(torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("tokens", [16, 100])
def test_prefill_operations_are_those_that_torch_counts_less_the_masked_half(tokens: int) -> None:
    model = tiny_model("llama", layers=3)
    own = shape_of(model)
    masked = 2 * tokens**2 * own.width * own.layers
    assert prefill_flop(own, tokens) + masked == operations(model, tokens)


def test_appended_rows_cost_what_a_longer_prompt_would_cost_more() -> None:
    longer = prefill_flop(B8, 32_768 + 32) - prefill_flop(B8, 32_768)
    assert row_share(B8, 32, 32_768) == pytest.approx(longer / prefill_flop(B8, 32_768), rel=1e-3)
    assert training_flop(B8, 2048, 32, 32) == pytest.approx(
        prefill_flop(B8, 2048 + 32 + 3 * 32), rel=0.01
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_the_shapes_in_the_configs_have_the_parameters_in_the_models_names(name: str) -> None:
    stated = {"1b": 1.24e9, "3b": 3.21e9, "1.7b": 1.72e9, "4b": 4.02e9, "8b": 8.1e9}
    stated |= {"135m": 134.5e6, "270m": 268e6}
    size = next(value for part, value in stated.items() if part in name.split("-"))
    assert shape(name).parameters == pytest.approx(size, rel=0.02)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_loaded_models_shape_counts_its_parameters(family: str) -> None:
    model = tiny_model(family, layers=3, heads=8, kv_heads=2)
    norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
    assert shape_of(model).parameters == sum(p.numel() for p in model.parameters()) - norms
    assert isinstance(model, AutoModelForCausalLM._model_mapping[type(model.config)])


def test_theory_is_near_what_the_paper_prints_for_8b_at_32k() -> None:
    # LookaheadKV: 1.74 ms there. A draft of 32 tokens reads 16 GB of weights at 0.9 of 3.35 TB/s each time.
    assert overhead_s("lookaheadkv", B8, 32_768, 128) == pytest.approx(1.74e-3, rel=0.25)
    step = 2 * B8.parameters / (0.9 * 3.35e12)
    assert decode_s(B8, 128) == pytest.approx(step, rel=0.01)
    laq = overhead_s("laq", B8, 32_768, 128)
    assert laq is not None and laq == pytest.approx(32 * step, rel=0.02)


def test_scores_read_each_key_once_and_compaction_moves_what_is_kept() -> None:
    keys = 32_768 * 32 * 8 * 128 * 2
    assert scores_s(B8, 32, 32_768) == pytest.approx(keys / (0.9 * 3.35e12))
    assert compact_s(B8, 128) == pytest.approx(2 * 2 * 128 * 32 * 8 * 128 * 2 / (0.9 * 3.35e12))


def test_speckv_pays_its_draft_models_prefill_and_steps_and_has_no_theory_without_one() -> None:
    assert overhead_s("speckv", B8, 32_768, 128) is None
    found = overhead_s("speckv", B8, 32_768, 128, draft=B1)
    least = prefill_s(B1, 32_768) + 32 * decode_s(B1, 32_768)
    assert found is not None and least < found < least + 0.01


def test_methods_that_the_model_says_nothing_of_have_no_theory() -> None:
    assert overhead_s("random", B8, 4096, 128) is None
    assert overhead_s("streamingllm", B8, 4096, 128) == compact_s(B8, 128)
