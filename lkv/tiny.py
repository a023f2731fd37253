"""Tiny random models and a byte tokenizer, made in memory: the whole pipeline without a download."""

from __future__ import annotations

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
from lkv.theory import Shape

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
