"""Promises of LookaheadKV: the prompt never feels it, and its gradients are those of the whole sequence."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from conftest import observed
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from lkv.errors import UserError
from lkv.eviction.importance import kl_divergence, reference
from lkv.eviction.prefill import observe_tail, prefill
from lkv.files.json_files import read_json, write_hashed_json
from lkv.files.sums import sha256_file
from lkv.interface import Tail
from lkv.lookahead import probe
from lkv.lookahead.adapter import LookaheadKV
from lkv.lookahead.publish import FACTS, share
from lkv.model.architecture import LINEARS
from lkv.model.attention import SDPA
from lkv.model.random_weights import tiny_model

ROOT = Path(__file__).parents[1]
SCHEDULE = {"batch": 2, "learning_rate": 0.002, "warmup_steps": 1, "held_out": 3}


def trained_like(model, seed=3, tokens=6):
    """An adapter whose B is not zero, so that the LoRA does something."""
    adapter = LookaheadKV.create(model, tokens=tokens, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for b in adapter.lora_b:
        b.data.copy_(torch.empty(b.shape).normal_(0, 0.1, generator=generator))
    return adapter


def llama(hidden, intermediate, layers, heads, kv, dim, vocab, cls=LlamaForCausalLM, config=LlamaConfig):
    with torch.device("meta"):
        return cls(
            config(
                hidden_size=hidden,
                intermediate_size=intermediate,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=kv,
                head_dim=dim,
                vocab_size=vocab,
            )
        )


def qwen3(*sizes):
    return llama(*sizes, cls=Qwen3ForCausalLM, config=Qwen3Config)


@pytest.mark.parametrize(
    ("make", "sizes", "millions"),
    [
        (llama, (2048, 8192, 16, 32, 8, 64, 128256), 5.40),  # Llama-3.2-1B
        (llama, (4096, 14336, 32, 32, 8, 128, 128256), 20.55),  # Llama-3.1-8B
        (qwen3, (2048, 6144, 28, 16, 8, 128, 151936), 8.53),  # Qwen3-1.7B
        (qwen3, (4096, 12288, 36, 32, 8, 128, 151936), 21.45),  # Qwen3-8B
    ],
    ids=["llama-3.2-1b", "llama-3.1-8b", "qwen3-1.7b", "qwen3-8b"],
)
def test_trainable_parameters_meet_the_published_counts(make, sizes, millions):
    assert round(LookaheadKV.create(make(*sizes)).parameter_count() / 1e6, 2) == millions


def test_only_q_and_k_are_adapted_in_the_last_layer():
    paths = LookaheadKV.create(observed("llama")).paths
    assert len(paths) == 2 * len(LINEARS) + 2
    assert [p for p in paths if ".2." in p] == [
        "model.layers.2.self_attn.q_proj",
        "model.layers.2.self_attn.k_proj",
    ]


def test_a_single_pass_equals_two_passes_and_leaves_the_prompt_as_it_was(model, prompt):
    adapter = trained_like(model)
    plain, _ = prefill(model, prompt)
    two = observe_tail(plain, adapter.tail())
    one, ahead = prefill(model, prompt, tail=adapter.tail())
    assert ahead is not None
    for mine, theirs in zip(ahead, two, strict=True):
        assert (mine - theirs).abs().max() <= 4e-6
    for mine, theirs in zip(one.cache.layers, plain.cache.layers, strict=True):
        torch.testing.assert_close(mine.keys, theirs.keys, rtol=0, atol=2e-5)
        torch.testing.assert_close(mine.values, theirs.values, rtol=0, atol=2e-5)
    assert one.first == plain.first


def test_first_token_logits_do_not_change_with_the_adapter(model, prompt):
    logits = []
    hook = model.lm_head.register_forward_hook(lambda _m, _i, out: logits.append(out))
    for tail in (None, trained_like(model).tail(), trained_like(model, seed=9).tail()):
        prefill(model, prompt, tail=tail)
    hook.remove()
    assert all(out.shape == (1, 260) for out in logits)
    assert (logits[0] - logits[1]).abs().max() <= 2e-5
    # Two adapters, same shapes: what the prompt's rows compute is equal to the bit.
    assert torch.equal(logits[1], logits[2])


def test_the_lora_changes_what_the_lookahead_rows_see(model, prompt):
    adapter = trained_like(model)
    plain, _ = prefill(model, prompt)
    with_lora = observe_tail(plain, adapter.tail())
    without = observe_tail(plain, Tail(adapter.tokens[None]))
    assert max((a - b).abs().max() for a, b in zip(with_lora, without, strict=True)) > 1e-3


def test_gradients_equal_autograd_through_the_whole_sequence(model, prompt):
    adapter = trained_like(model)
    target = [torch.rand(1, 8, prompt.shape[1]) for _ in range(3)]
    prefilled, _ = prefill(model, prompt)

    def loss(seen):
        return torch.stack([kl_divergence(t, s).mean() for t, s in zip(target, seen, strict=True)]).mean()

    ours = torch.autograd.grad(loss(observe_tail(prefilled, adapter.tail())), list(adapter.parameters()))

    # Independent: eager attention maps of prompt and tokens in one pass, nothing detached or cached. The LoRA
    # goes into plain modules around the linears, masked by row, as the paper writes it.
    model.set_attn_implementation("eager")
    linears = [model.get_submodule(path) for path in adapter.paths]
    originals = [linear.forward for linear in linears]
    n, length = adapter.n, prompt.shape[1]
    active = torch.zeros(1, length + n, 1)
    active[:, length:] = 1
    for linear, original, a, b in zip(linears, originals, adapter.lora_a, adapter.lora_b, strict=True):
        linear.forward = lambda x, f=original, a=a, b=b: f(x) + active * ((x @ a.T) @ b.T) * 4.0
    inputs = torch.cat([model.get_input_embeddings()(prompt), adapter.tokens[None]], 1)
    maps = model(inputs_embeds=inputs, output_attentions=True, use_cache=False).attentions
    truth = torch.autograd.grad(
        loss([a[:, :, length:, :length].mean(2) for a in maps]), list(adapter.parameters())
    )
    for linear in linears:
        del linear.forward
    for mine, theirs in zip(ours, truth, strict=True):
        assert theirs.abs().max() > 0
        assert (mine - theirs).abs().max() <= 1e-4 * theirs.abs().max() + 1e-7


def test_gradients_reach_the_adapter_and_nothing_else(model, prompt):
    model.requires_grad_(True)
    adapter = trained_like(model)
    prefilled, _ = prefill(model, prompt)
    seen = observe_tail(prefilled, adapter.tail())
    torch.stack([s.square().sum() for s in seen]).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapter.parameters())
    assert all(layer.keys.grad_fn is None for layer in prefilled.cache.layers)


def test_saved_and_loaded_is_the_same_to_the_bit(model, prompt, tmp_path):
    adapter = trained_like(model)
    adapter.save_pretrained(tmp_path, arm="test")
    again = LookaheadKV.from_pretrained(tmp_path, model)
    plain, _ = prefill(model, prompt)
    for mine, theirs in zip(
        observe_tail(plain, adapter.tail()), observe_tail(plain, again.tail()), strict=True
    ):
        assert torch.equal(mine, theirs)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again.save_pretrained(tmp_path, arm="test")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


def test_shared_modules_are_the_trained_ones_in_bfloat16_with_a_card(model, prompt, tmp_path):
    adapter = trained_like(model)
    facts = dict.fromkeys(FACTS, "x") | {
        "schedule": SCHEDULE,
        "steps": 5,
        "lora": "all",
        **dict.fromkeys(("held_out_kl_before", "held_out_kl_after", "held_out_recall"), 0.5),
    }
    adapter.save_pretrained(tmp_path / "trained", arm="main", **facts)
    share(tmp_path / "trained", tmp_path / "shared", "Apache-2.0")
    again = LookaheadKV.from_pretrained(tmp_path / "shared", model)
    assert torch.equal(adapter.tokens.bfloat16().float(), again.tokens)
    for mine, theirs in ((adapter.lora_a, again.lora_a), (adapter.lora_b, again.lora_b)):
        found = dict(zip(again.paths, theirs, strict=True))
        for path, weight in zip(adapter.paths, mine, strict=True):
            assert torch.equal(weight.bfloat16().float(), found[path])
    card = read_json(tmp_path / "shared/lookahead.json")
    trained = read_json(tmp_path / "trained/lookahead.json")
    assert {**card, "sha256": None} == {**trained, "sha256": None}
    text = (tmp_path / "shared/README.md").read_text()
    assert "license: Apache-2.0" in text and "Adam at 0.002" in text and "50.0%" in text
    bare = LookaheadKV.create(model, tokens=4, lora="none")
    bare.save_pretrained(tmp_path / "bare", **facts | {"lora": "none", "held_out_recall": None})
    share(tmp_path / "bare", tmp_path / "given", "MIT")
    text = (tmp_path / "given/README.md").read_text()
    assert "4 lookahead tokens:\n" in text and "LoRA" not in text and "nothing was measured" in text
    with pytest.raises(UserError, match="another folder"):
        share(tmp_path / "shared", tmp_path / "shared", "Apache-2.0")


def test_the_published_modules_say_what_they_are_and_are_whole():
    folder = Path(__file__).parents[1] / "adapters/smollm2-135m-instruct"
    adapter = LookaheadKV.from_pretrained(folder)
    assert adapter.parameter_count() == adapter.card["parameters"] == 2_394_624
    assert adapter.tokens.dtype == torch.float32 and torch.equal(adapter.tokens, adapter.tokens.bfloat16())
    text = (folder / "README.md").read_text()
    for fact in ("trained_on", "commit", "model_fingerprint", "data_sha256", "held_out_kl_after"):
        assert str(adapter.card[fact]) in text
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6_000_000


def test_peft_reads_the_adapter_and_sees_the_same(prompt, tmp_path):
    model = tiny_model("llama", seed=1, layers=3, heads=8)
    model.set_attn_implementation(SDPA)
    adapter = trained_like(model)
    plain, _ = prefill(model, prompt)
    with torch.no_grad():
        ours = observe_tail(plain, adapter.tail())
    adapter.save_pretrained(tmp_path)
    other = tiny_model("llama", seed=1, layers=3, heads=8)
    other.set_attn_implementation("eager")
    wrapped = PeftModel.from_pretrained(other, str(tmp_path))
    tokens = load_file(tmp_path / "lookahead_tokens.safetensors")["tokens"]
    with torch.no_grad():
        with wrapped.disable_adapter():
            cache = wrapped(prompt, use_cache=True).past_key_values
        out = wrapped(inputs_embeds=tokens[None], past_key_values=cache, output_attentions=True)
    n = prompt.shape[1]
    for mine, theirs in zip(ours, out.attentions, strict=True):
        torch.testing.assert_close(mine, theirs[..., :n].mean(2), rtol=1e-4, atol=1e-6)


def test_an_adapter_for_another_model_is_refused(tmp_path):
    model = observed("llama")
    trained_like(model).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"made for llama, the model here is qwen3 \(model_type"):
        LookaheadKV.from_pretrained(tmp_path, observed("qwen3"))
    with pytest.raises(UserError, match="other weights"):
        LookaheadKV.from_pretrained(tmp_path, observed("llama", seed=2))
    half = observed("llama").to(torch.bfloat16)
    assert LookaheadKV.from_pretrained(tmp_path, half).tokens.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "lookahead_tokens.safetensors"])
def test_damaged_adapter_files_are_refused(tmp_path, name):
    trained_like(observed("llama")).save_pretrained(tmp_path)
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        LookaheadKV.from_pretrained(tmp_path)
    card = read_json(tmp_path / "lookahead.json")
    path.write_bytes(b"not safetensors at all")
    card["sha256"][name] = sha256_file(path)
    write_hashed_json(tmp_path / "lookahead.json", card)
    with pytest.raises(UserError, match="not a safetensors file"):
        LookaheadKV.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="no such adapter file"):
        LookaheadKV.from_pretrained(Path(tmp_path))


def test_python_use_as_in_the_readme(model, prompt, tmp_path):
    trained_like(model).save_pretrained(tmp_path)
    lookahead = LookaheadKV.from_pretrained(tmp_path)
    done = lookahead.generate(model, input_ids=prompt, budget=40, max_new_tokens=8)
    assert done.kept == 40
    assert done.cache_bytes < done.full_cache_bytes
    with lookahead.evicting(model, budget=40):
        out = model.generate(prompt, max_new_tokens=8, do_sample=False)
    assert [t for t in out[0, prompt.shape[1] :].tolist() if t != 257] == done.tokens


def test_importance_of_lookahead_rows_counts_their_own_keys_in_the_softmax(model, prompt):
    # The published parameter counts include LoRA on the last layer's keys: the rows' own keys take part.
    adapter = trained_like(model)
    prefilled, _ = prefill(model, prompt)
    for layer in observe_tail(prefilled, adapter.tail()):
        assert (layer.sum(-1) < 1 - 1e-4).all()


def test_importance_stays_float32_in_half_precision():
    queries, keys = torch.randn(1, 4, 3, 8).bfloat16(), torch.randn(1, 2, 20, 8).bfloat16()
    assert reference(queries, keys, 0.3, 20).dtype == torch.float32


# An adapter on its own model, as that may come back.


class Stored8(nn.Linear):
    """A linear whose weight is int8 with a scale a row, as quantising libraries store it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        whole = (linear.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(whole, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.weight * self.scale).T


class Read8(Stored8):
    """One that says what its weight is in floating point."""

    def dequantize(self) -> torch.Tensor:
        return self.weight * self.scale


def quantised(model, kind):
    for layer in model.base_model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(layer.self_attn, name, kind(getattr(layer.self_attn, name)))
    return model


@pytest.mark.parametrize("rows", [1, 4, 60, 700])
def test_an_adapter_fits_its_own_model_with_a_padded_vocabulary(rows, model):
    adapter = trained_like(model)
    size = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(size + rows, mean_resizing=False)
    assert model.get_input_embeddings().weight.shape[0] == size + rows
    adapter.check_fits(model)
    adapter.check_fits(model.to(torch.bfloat16))


@pytest.mark.parametrize("kind", [Stored8, Read8])
def test_an_adapter_fits_its_own_model_in_8_bit(kind, model):
    adapter = trained_like(model)
    adapter.check_fits(quantised(model, kind))
    model.resize_token_embeddings(model.config.vocab_size + 4, mean_resizing=False)
    adapter.check_fits(model)


def test_an_adapter_made_for_a_quantised_model_fits_the_dense_one_and_says_what_it_could_not_read(model):
    adapter = trained_like(quantised(copy.deepcopy(model), Stored8))
    assert adapter.card["base_model"]["probe"][8:] == [None] * 24
    adapter.check_fits(model)


@pytest.mark.parametrize("change", ["seed", "embeddings", "keys", "padded", "quantised", "unread"])
def test_truly_other_weights_stay_refused(change):
    adapter, other = trained_like(observed("llama")), observed("llama", seed=2)
    mine = observed("llama")
    with torch.no_grad():
        if change == "embeddings":
            mine.get_input_embeddings().weight.copy_(other.get_input_embeddings().weight)
        elif change == "keys":
            for layer, theirs in zip(mine.base_model.layers, other.base_model.layers, strict=True):
                layer.self_attn.k_proj.weight.copy_(theirs.self_attn.k_proj.weight)
        else:
            mine = other
    if change == "padded":
        mine.resize_token_embeddings(mine.config.vocab_size + 64, mean_resizing=False)
    elif change in ("quantised", "unread"):
        mine = quantised(mine, Read8 if change == "quantised" else Stored8)
    with pytest.raises(UserError, match="other weights"):
        adapter.check_fits(mine)


def test_published_modules_fit_the_weights_whose_values_their_card_holds():
    card = json.loads((ROOT / "adapters/smollm2-135m-instruct/lookahead.json").read_text(encoding="utf-8"))
    values = card["base_model"]["probe"]
    assert len(values) == 4 * probe.VALUES
    table, key = nn.Embedding(4096, 576), nn.Linear(576, 192)
    rows = 4000  # of a vocabulary that was padded to 4,096
    with torch.no_grad():
        flat = table.weight.flatten()
        flat[torch.arange(8) * (rows * 576 // 8)] = torch.tensor(values[:8])
    keys = []
    for at in range(8, 32, 8):
        key = copy.deepcopy(key)
        with torch.no_grad():
            key.weight.flatten()[torch.arange(8) * (576 * 192 // 8)] = torch.tensor(values[at : at + 8])
        keys.append(key)
    assert probe.same(values, table, keys)
    assert not probe.same(values, table, keys[::-1])
