"""Tiny random models and a byte tokenizer, made in memory: the whole pipeline without a download."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lkv.errors import UserError, one_of
from lkv.files.json_files import fingerprint
from lkv.model.attention import best_backend
from lkv.model.dtype import choose_dtype
from lkv.model.load import Loaded
from lkv.model.shape import Shape


def of_shape(spec: dict[str, Any], device: torch.device, dtype: str = "auto") -> Loaded:
    """A model of a spec's shape with random weights, for timing: speed does not depend on the values.

    Its tokenizer is a stand-in, and it has no stop tokens.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    from lkv.model.device import memory

    made = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
    shape = spec["shape"]
    if shape is None or shape["family"] not in made:
        raise UserError(
            f"{spec['name']} has no shape that random weights can be made of; "
            f"give `shape` in its file, of the family {' or '.join(made)}"
        )
    chosen = choose_dtype(dtype, device)
    check_shape(Shape(**shape), memory(device) / chosen.itemsize)
    config_class, model_class = made[shape["family"]]
    config = config_class(
        vocab_size=shape["vocabulary"],
        hidden_size=shape["hidden"],
        intermediate_size=shape["intermediate"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head_dim"],
        max_position_embeddings=1 << 20,
        tie_word_embeddings=shape["tied"],
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(chosen)
    try:
        with device, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            model = model_class(config)
    finally:
        torch.set_default_dtype(before)
    model.eval().requires_grad_(False)
    model.set_attn_implementation(best_backend(device, chosen))
    return Loaded(model, tiny_tokenizer(), spec["name"], fingerprint("random", shape), frozenset())


SPECIALS = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"]
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FAMILIES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}

LARGEST = 10**9  # numbers of a tiny model


def check_shape(shape: Shape, most: float) -> None:
    """Refuses sizes of which no model can be made, or one of more than `most` numbers."""
    if shape.heads % shape.kv_heads:
        raise UserError(f"{shape.heads} heads do not divide among {shape.kv_heads} KV heads; give a multiple")
    if shape.head_dim % 2:
        raise UserError(
            f"a head_dim of {shape.head_dim} has no halves for RoPE to rotate; give an even number"
        )
    if shape.parameters > most:
        raise UserError(
            f"a model of these sizes has {shape.parameters:.3g} numbers, {most:.3g} fit; give smaller sizes"
        )


def tiny_model(
    family: str = "llama",
    seed: int = 0,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    intermediate: int = 128,
    context: int = 2048,
    vocabulary: int = 256 + len(SPECIALS),
    sharpness: float = 2.0,
) -> PreTrainedModel:
    """A random Llama or Qwen3 in float32; `sharpness` scales q and k, or attention were nearly uniform."""
    if family not in FAMILIES:
        raise one_of("model family", family, FAMILIES)
    shape = Shape(
        layers, hidden, heads, kv_heads, head_dim, intermediate, vocabulary, family == "qwen3", family
    )
    check_shape(shape, LARGEST)
    config_class, model_class = FAMILIES[family]
    config = config_class(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=context,
        tie_word_embeddings=family == "qwen3",
        initializer_range=0.1,  # at 0.02 the embedding outweighs the layers: the same token for ever
        eos_token_id=257,
        pad_token_id=256,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.data.mul_(sharpness)
            layer.self_attn.k_proj.weight.data.mul_(sharpness)
    return model.eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens (ids 0-255), four special tokens, a minimal chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s?\S+|\s"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)  # 256 to 259, in this order: the models' configs name them so
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=SPECIALS[0], eos_token=SPECIALS[1])
    fast.add_special_tokens({"additional_special_tokens": SPECIALS[2:]})
    fast.chat_template = CHAT
    return fast
