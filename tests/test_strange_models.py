"""What users do to a model before they evict from it: hooks, wrappers, subclasses, rotations, templates.

Each is compared with what the same model says through transformers' own generate.
"""

from __future__ import annotations

import copy
import warnings
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import zoo
from conftest import observed
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.utils import chat_template_utils

from lkv import registry
from lkv.cache.evictable import check_held, entries, full_layers, prompt_cache
from lkv.errors import UserError
from lkv.eviction.compact import compact
from lkv.eviction.decode import decode_all
from lkv.eviction.decoder import pool
from lkv.eviction.generate import generate
from lkv.eviction.hooks import evicting
from lkv.eviction.pipeline import evict
from lkv.eviction.prefill import prefill, reads_unequal_lengths
from lkv.interface import Answering
from lkv.lookahead.adapter import LookaheadKV
from lkv.model import attention
from lkv.model.architecture import blueprint, capturable, ours, unwrapped
from lkv.model.attention import FLASH, SDPA, observable
from lkv.model.chat_template import Unrendered, chat_ids, chat_text
from lkv.model.random_weights import tiny_tokenizer
from lkv.model.rope import context, length_dependent

NEW, STOP = 8, 257
SNAPKV = registry.get("snapkv")


def own(model: Any, ids: Tensor, new: int = NEW) -> list[int]:
    """The model's own greedy answer, without its stop token."""
    made = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False
    )
    tokens: list[int] = made[0, ids.shape[1] :].tolist()
    return tokens[: tokens.index(STOP)] if STOP in tokens else tokens


def stored(model: Any, ids: Tensor, wrapped: Any = None, budget: int = 64) -> list[int]:
    """Entries a layer after `evicting()` and NEW tokens through the model's own generate."""
    outer = model if wrapped is None else wrapped
    with evicting(outer, SNAPKV, budget):
        out = outer.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False,
            return_dict_in_generate=True,
        )  # fmt: skip
    fed = out.sequences.shape[1] - ids.shape[1] - 1
    return [entries(out.past_key_values, i)[0].shape[2] - fed for i in full_layers(out.past_key_values)]


def add_steering(model: Any) -> None:
    shift = torch.randn(64, generator=torch.Generator().manual_seed(2)) * 0.6
    model.model.layers[1].mlp.register_forward_hook(lambda _m, _i, out: out + shift)


def add_linear_hook(model: Any) -> None:
    linear = model.model.layers[0].self_attn.q_proj
    linear.register_forward_hook(lambda _m, _i, out: out + torch.linspace(-1, 1, out.shape[-1]))


def add_pre_hook(model: Any) -> None:
    model.model.layers[2].register_forward_pre_hook(lambda _m, given: (given[0] * 1.5, *given[1:]))


def replace_forward(model: Any) -> None:
    linear = model.model.layers[1].mlp.down_proj
    before = linear.forward
    linear.forward = lambda inputs: before(inputs) * 0.5  # as accelerate does for offloaded weights


class HalfAttention(LlamaAttention):
    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        return super().forward(hidden_states * 0.5, **kwargs)


def subclass(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.__class__ = HalfAttention


class Quantised(nn.Module):
    """A linear with weights in eight-bit integers, as libraries put in the place of nn.Linear."""

    def __init__(self, linear: nn.Linear, levels: int = 127) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = linear.weight.abs().max() / levels
        self.register_buffer("values", (linear.weight / self.scale).round().to(torch.int8))

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.linear(inputs, self.values.float() * self.scale)


def quantise(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.v_proj = Quantised(layer.self_attn.v_proj)
        layer.mlp.up_proj = Quantised(layer.mlp.up_proj, levels=2)


CHANGES = [add_steering, add_linear_hook, add_pre_hook, replace_forward, subclass, quantise]


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_done_to_a_model_is_heard_by_the_engine(change: Any, prompt: Tensor) -> None:
    model: Any = observed("llama")
    plain = own(model, prompt)
    assert generate(model, prompt, None, 1, NEW).tokens == plain  # the block loop ran it once before
    assert ours(model)
    change(model)
    changed = own(model, prompt)
    assert changed != plain, "the change did nothing: the test would prove nothing"
    assert not ours(model)
    assert generate(model, prompt, None, 1, NEW).tokens == changed
    with evicting(model, SNAPKV, 64):
        evicted = own(model, prompt)
    done = generate(model, prompt, SNAPKV, 64, NEW)
    assert (done.tokens, done.kept) == (evicted, 64)


def test_a_hook_that_goes_lets_the_block_loop_back_in(prompt: Tensor) -> None:
    model: Any = observed("qwen3")
    hook = model.model.layers[0].mlp.register_forward_hook(lambda _m, _i, out: out * 2)
    assert not ours(model) and not capturable(model)
    hook.remove()
    assert ours(model) and capturable(model)


def test_what_was_captured_before_weights_were_exchanged_is_forgotten() -> None:
    model: Any = observed("llama")
    before, kept = blueprint(model)[0], pool(model)
    assert blueprint(model)[0] is before and pool(model) is kept
    linear = model.model.layers[1].self_attn.k_proj
    linear.weight = nn.Parameter(linear.weight.detach() * 2, requires_grad=False)
    assert blueprint(model)[0] is not before and pool(model) is not kept


def lora(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    wrapped: Any = get_peft_model(
        model, LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    )
    generator = torch.Generator().manual_seed(4)
    for path, parameter in wrapped.named_parameters():
        if "lora_B" in path:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return wrapped.eval().requires_grad_(False)


def test_a_peft_model_is_evicted_from_with_its_adapter(prompt: Tensor) -> None:
    model: Any = zoo.build("Llama")
    plain = own(model, prompt)
    wrapped = lora(model)
    adapted = own(wrapped, prompt)
    assert adapted != plain
    assert stored(model, prompt, wrapped) == [64] * 4
    assert generate(wrapped, prompt, None, 1, NEW).tokens == adapted
    with evicting(wrapped, SNAPKV, 64):
        evicted = own(wrapped, prompt)
    done = generate(wrapped, prompt, SNAPKV, 64, NEW)
    assert (done.tokens, done.kept) == (evicted, 64)
    assert not capturable(model)  # a captured pass would not hear of another active adapter


def test_prompt_tuning_is_refused(prompt: Tensor) -> None:
    from peft import PromptTuningConfig, get_peft_model

    wrapped = get_peft_model(
        zoo.build("Llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    )
    with pytest.raises(UserError, match="tokens of its own before the prompt"):
        generate(wrapped, prompt, SNAPKV, 64, 2)


def test_a_compiled_model_is_evicted_from(prompt: Tensor) -> None:
    model: Any = zoo.build("Llama")
    compiled: Any = torch.compile(model, backend="eager")
    assert unwrapped(compiled) is model
    assert stored(model, prompt, compiled) == [64] * 4
    assert (
        generate(compiled, prompt, SNAPKV, 64, NEW).tokens == generate(model, prompt, SNAPKV, 64, NEW).tokens
    )


def test_what_is_no_model_of_transformers_is_refused(prompt: Tensor) -> None:
    with pytest.raises(UserError, match="not a model of transformers"):
        generate(nn.Linear(2, 2), prompt, SNAPKV, 64, 2)


@pytest.mark.parametrize("around", [lambda m: m.forward, lambda m: m.model])
def test_a_prompt_that_is_read_around_the_hooks_is_an_error(around: Any, prompt: Tensor) -> None:
    model: Any = zoo.build("Mistral")
    with evicting(model, SNAPKV, 64), pytest.raises(UserError, match="read without an eviction"):
        around(model)(prompt, use_cache=True)
    with evicting(model, SNAPKV, 150):  # a prompt that fits loses nothing
        around(model)(prompt, use_cache=True)


@pytest.mark.parametrize("name", ["Llama", "Gemma 3"])
def test_a_cache_that_the_user_made_is_evicted_from(name: str, prompt: Tensor) -> None:
    model: Any = zoo.build(name)
    made = [DynamicCache(), DynamicCache(config=model.config), prompt_cache(model.config)]
    answers = []
    for cache in made:
        with evicting(model, SNAPKV, 64), torch.no_grad():
            out = model(prompt, past_key_values=cache, use_cache=True)
        held = [entries(cache, i)[0].shape[2] for i in full_layers(cache)]
        assert held == [64] * len(held) and held
        token = out.logits[:, -1:].argmax(-1)
        with observable(model), torch.no_grad():
            answers.append(model(token, past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(answers[0], answers[1])
    torch.testing.assert_close(answers[0], answers[2])


def test_layers_that_hold_more_than_they_should_are_an_error_not_a_silence() -> None:
    check_held([64, 64], [64, 64])
    with pytest.raises(AssertionError, match=r"to \[64, 64\] entries the layers hold \[64, 150\]"):
        check_held([64, 150], [64, 64])


# Rotations that depend on the length

ROPES = {
    "dynamic": {
        "max_position_embeddings": 128,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    },
    "yarn": {
        "max_position_embeddings": 256,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 256,
        },
    },
    "longrope": {
        "max_position_embeddings": 1024,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "factor": 8.0, "short_factor": [1.0] * 8,
            "long_factor": [4.0] * 8, "original_max_position_embeddings": 128,
        },
    },
}  # fmt: skip


def fresh(model: Any) -> Any:
    """A copy without the frequencies that earlier passes left in transformers' modules."""
    return copy.deepcopy(model)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
@pytest.mark.parametrize("length", [90, 110, 127, 128, 140])
def test_lookahead_tokens_leave_a_length_dependent_rotation_alone(kind: str, length: int) -> None:
    model: Any = zoo.build("Llama", **ROPES[kind])
    assert length_dependent(model)
    ids = torch.randint(3, 250, (1, length), generator=torch.Generator().manual_seed(5))
    adapter = LookaheadKV.create(model, seed=3).requires_grad_(False)
    cache = prompt_cache(model.config)
    with torch.no_grad():
        truth = fresh(model)(ids, past_key_values=cache).logits[0, -1]
    with observable(model):
        prefilled, seen = prefill(model, ids, (), adapter.tail(), answering=Answering(max_tokens=1))
    assert seen is not None and len(seen) == 4
    for layer in range(4):
        torch.testing.assert_close(entries(prefilled.cache, layer)[0], cache.layers[layer].keys)
    assert int(prefilled.first) == int(truth.argmax())
    assert generate(model, ids, adapter.method(), length, NEW).tokens == own(fresh(model), ids)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_what_was_read_before_does_not_turn_a_prompt(kind: str) -> None:
    model: Any = zoo.build("Llama", **ROPES[kind])
    generator = torch.Generator().manual_seed(6)
    short, long = (torch.randint(3, 250, (1, n), generator=generator) for n in (100, 200))
    first = [generate(model, ids, None, 1, NEW).tokens for ids in (short, long, short)]
    assert first[0] == first[2] == own(fresh(model), short)
    assert first[1] == own(fresh(zoo.build("Llama", **ROPES[kind])), long)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rows_of_unequal_positions_do_not_turn_each_other(kind: str) -> None:
    model: Any = zoo.build("Llama", **ROPES[kind])
    assert not reads_unequal_lengths(model)
    generator = torch.Generator().manual_seed(6)
    prompts = [torch.randint(3, 250, (1, n), generator=generator) for n in (100, 200)]
    with observable(model):
        rows = [row for ids in prompts for row in compact(prefill(model, ids)[0], None)]
        both = decode_all(model, rows, NEW, frozenset({STOP}), 8)
    alone = [own(zoo.build("Llama", **ROPES[kind]), ids) for ids in prompts]
    assert both == alone


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [({}, 2048), (ROPES["dynamic"], 512), (ROPES["longrope"], 1024), (ROPES["yarn"], 1024)],
)
def test_the_context_is_what_the_rotation_was_made_for(changes: dict[str, Any], tokens: int) -> None:
    model: Any = zoo.build("Llama", **changes)
    assert context(model.config) == tokens
    within = torch.randint(3, 250, (1, tokens - 40), generator=torch.Generator().manual_seed(1))
    assert generate(model, within, SNAPKV, 64, 4).kept == 64
    with pytest.raises(UserError, match=f"context is {tokens}"):
        generate(model, torch.zeros(1, tokens, dtype=torch.long), SNAPKV, 64, 4)


# Answers at a temperature


def test_a_model_that_does_more_to_its_logits_is_not_drawn_from(prompt: Tensor) -> None:
    model: Any = zoo.build("Mistral")
    plain = generate(model, prompt, SNAPKV, 64, 4).tokens
    model.register_forward_hook(lambda _m, _i, out: out.__setitem__("logits", out.logits.abs()))
    with observable(model), pytest.raises(UserError, match="does more to the logits"):
        prefill(model, prompt, answering=Answering(temperature=1.0))
    assert generate(model, prompt, SNAPKV, 64, 4).tokens == plain


def test_granites_tokens_are_drawn_by_its_own_scale(prompt: Tensor) -> None:
    model: Any = zoo.build("Granite")
    with observable(model), torch.no_grad():
        softmax = model(prompt).logits[0, -1].float().softmax(-1)
        draws = [
            int(prefill(model, prompt, answering=Answering(seed=seed, temperature=1.0))[0].first)
            for seed in range(600)
        ]
    shares = torch.bincount(torch.tensor(draws), minlength=260).float() / len(draws)
    noise = torch.multinomial(softmax, len(draws), True, generator=torch.Generator().manual_seed(0))
    by_chance = torch.bincount(noise, minlength=260).float() / len(draws)
    assert (shares - softmax).abs().sum() < 1.3 * (by_chance - softmax).abs().sum()


# FlashAttention's name


@pytest.mark.parametrize("installed", [False, True])
@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Mistral"])
def test_transformers_takes_the_names_of_our_attention(
    name: str, installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import modeling_flash_attention_utils as flash

    monkeypatch.setattr(flash, "is_flash_attn_2_available", lambda: installed, raising=False)
    model = zoo.build(name)
    for given in (SDPA, FLASH):
        model.set_attn_implementation(given)
        assert model.config._attn_implementation == given


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma 3"])
def test_with_flash_attn_a_model_answers_as_without(name: str, prompt: Tensor) -> None:
    model: Any = zoo.build(name)
    plain = generate(model, prompt, SNAPKV, 64, NEW).tokens
    model.set_attn_implementation(FLASH)  # off CUDA its prefill is SDPA's
    assert generate(model, prompt, SNAPKV, 64, NEW).tokens == plain
    with torch.no_grad():
        flashed = model(prompt).logits
        model.set_attn_implementation("eager")
        torch.testing.assert_close(flashed, model(prompt).logits, rtol=1e-4, atol=1e-4)


# Chat templates

DATED = [
    ("{% if not date_string %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}", "26 Jul 2024"),
    ("{% set date_string = strftime_now('%Y-%m-%d %H:%M:%S') %}", "2024-07-26 00:00:00"),
    ("{% set date_string = strftime_now('%A, %d %B %Y (%j)') %}", "Friday, 26 July 2024 (208)"),
    ("\n  {% set date_string = strftime_now('%Y').split('0') | join('-') %}", "2-24"),
]


@pytest.mark.parametrize(("head", "written"), DATED)
def test_a_template_that_asks_for_the_date_writes_the_same_prompt_tomorrow(
    head: str, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = head + "Today is {{ date_string }}. {{ messages[0]['content'] }}"

    def on(day: datetime) -> str:
        monkeypatch.setattr(chat_template_utils, "datetime", SimpleNamespace(now=lambda: day), raising=False)
        return chat_text(tokenizer, "hello")

    lead = "\n" if head.startswith("\n") else ""
    assert on(datetime(2026, 1, 2)) == on(datetime(2031, 5, 6, 7, 8))
    assert on(datetime(2026, 1, 2)) == f"{lead}Today is {written}. hello"


def test_a_template_that_reads_content_as_parts_gets_parts() -> None:
    tokenizer = tiny_tokenizer()
    parts = "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}"
    tokenizer.chat_template = "{% for m in messages %}<|user|>" + parts + "{% endfor %}"
    assert chat_text(tokenizer, "what is the magic number?") == "<|user|>what is the magic number?"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("<|user|>{{ messages[0]['content'][:5] }}", "loses text"),
        ("<|user|>", "loses text"),
        ("{{ raise_exception('no users here') }}", "no users here"),
    ],
)
def test_text_that_does_not_arrive_in_the_prompt_is_an_error(template: str, why: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(Unrendered, match=why):
        chat_ids(tokenizer, "what is the magic number?")


# Refusals come early


def test_a_watched_attention_forgets_who_watched() -> None:
    model = zoo.build("Llama")
    with evicting(model, SNAPKV, 64):
        assert len(attention._watchmen) == 1
    assert attention._watchmen == []


def test_laq_scales_by_what_the_models_attention_scales_by() -> None:
    model = zoo.build("GPT-NeoX")  # whose layers are not named as Llama's
    ids = torch.randint(3, 250, (1, 100), generator=torch.Generator().manual_seed(1))
    method = registry.get("laq")
    with warnings.catch_warnings(), observable(model):
        warnings.simplefilter("ignore")
        prefilled, _ = prefill(model, ids, method.rows)
        [[row]] = evict(prefilled, method, [48])
    assert [keys.shape[1] for keys in row.keys] == [48] * 4
