"""Tiny random models of many architectures, made in memory from transformers' own configs.

`python tests/zoo.py` writes docs/architectures.md: what is supported, asked of each model
by lkv.model.support.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import PreTrainedModel

from lkv.model.architecture import ours
from lkv.model.support import eviction_problem, lookahead_problem

HEAD = """# Architectures

What works on which models, asked of a tiny random model of each by `lkv.model.support`. This page is
written by `python tests/zoo.py`; a test holds it to what the code says.

- *Evict*: every method that needs no training, by every door (`generate`, `evicting`, `evaluate`, layer by
  layer, lm-eval), equal to the full cache with the other entries masked. Sliding-window layers stay whole.
- *LookaheadKV*: its modules can be trained and used.
- *Fused*: the block loop of `lkv.model.forward` runs the model, with fused kernels on CUDA. Other models run
  through transformers' own forward.

| architecture | evict | LookaheadKV | fused |
|:--|:--|:--|:--|"""
FOOT = """
A model that cannot be evicted from is refused when `lkv model` brings it, when it is loaded, and at its
first prompt. A Llama or Qwen3 with hooks, LoRA, quantised or offloaded weights is evicted from through
transformers' own forward."""
HALF_SLIDING = {"sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"] * 2}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}


class Kind(NamedTuple):
    """An architecture: what it is called in the table, its class in transformers, what its config changes."""

    name: str
    family: str
    changes: dict[str, Any]


def _kinds() -> list[Kind]:
    head = {"head_dim": 16}
    return [
        Kind("Llama", "Llama", head),
        Kind(
            "Llama, biases, tied embeddings",
            "Llama",
            head | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        ),
        Kind("Qwen3", "Qwen3", head),
        Kind("Mistral", "Mistral", {"sliding_window": None}),
        Kind("Qwen2", "Qwen2", {}),
        Kind("Phi-3", "Phi3", {"sliding_window": None}),
        Kind("Phi", "Phi", {"partial_rotary_factor": 0.5}),
        Kind("Gemma", "Gemma", head),
        Kind("Gemma 3", "Gemma3:Gemma3TextConfig", head | HALF_SLIDING | {"query_pre_attn_scalar": 16}),
        Kind(
            "Granite",
            "Granite",
            {
                "embedding_multiplier": 12.0,
                "logits_scaling": 8.0,
                "residual_multiplier": 0.22,
                "attention_multiplier": 0.2,
            },
        ),
        Kind("SmolLM3", "SmolLM3", {"no_rope_layer_interval": 2}),
        Kind("OLMo", "Olmo", {}),
        Kind("OLMo 2", "Olmo2", {}),
        Kind("OLMo 3", "Olmo3", HALF_SLIDING),
        Kind("Cohere", "Cohere", {"logit_scale": 0.5}),
        Kind("Cohere 2", "Cohere2", head | HALF_SLIDING | {"logit_scale": 0.5}),
        Kind("StarCoder2", "Starcoder2", {"sliding_window": None}),
        Kind("GLM", "Glm", head),
        Kind("GLM-4", "Glm4", head),
        Kind("Helium", "Helium", head),
        Kind("Nemotron", "Nemotron", head),
        Kind("Arcee", "Arcee", head),
        Kind("Seed-OSS", "SeedOss", head),
        Kind("Ministral", "Ministral", head | HALF_SLIDING),
        Kind("EXAONE 4", "Exaone4", head | HALF_SLIDING),
        Kind("ERNIE 4.5", "Ernie4_5", head),
        Kind("Hunyuan", "HunYuanDenseV1", head),
        Kind("Mixtral", "Mixtral", {"sliding_window": None, "num_local_experts": 4}),
        Kind("Qwen3-MoE", "Qwen3Moe", head | MOE),
        Kind("OLMoE", "Olmoe", MOE),
        Kind("Mistral, window in every layer", "Mistral", {"sliding_window": 32}),
        Kind(
            "Gemma 2",
            "Gemma2",
            head | HALF_SLIDING | {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0},
        ),
        Kind("gpt-oss", "GptOss", head | HALF_SLIDING | {"num_local_experts": 4, "num_experts_per_tok": 2}),
        Kind("StableLM", "StableLm", {}),
        Kind(
            "Qwen3-Next",
            "Qwen3Next",
            head
            | MOE
            | {
                "shared_expert_intermediate_size": 64,
                "linear_num_value_heads": 4,
                "linear_num_key_heads": 2,
                "linear_key_head_dim": 16,
                "linear_value_head_dim": 16,
                "layer_types": ["linear_attention", "full_attention"] * 2,
            },
        ),
        Kind("LFM2", "Lfm2", {"layer_types": ["conv", "full_attention"] * 2}),
        Kind(
            "DeepSeek-V3",
            "DeepseekV3",
            {
                "num_key_value_heads": 4,
                "q_lora_rank": None,
                "kv_lora_rank": 32,
                "qk_rope_head_dim": 8,
                "qk_nope_head_dim": 16,
                "v_head_dim": 16,
                "n_routed_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 64,
                "n_group": 1,
                "topk_group": 1,
                "first_k_dense_replace": 1,
            },
        ),
        Kind(
            "Falcon, ALiBi", "Falcon", {"alibi": True, "num_kv_heads": 2, "new_decoder_architecture": False}
        ),
        Kind(
            "GPT-2",
            "GPT2:GPT2Config:GPT2LMHeadModel",
            {"n_positions": 2048, "n_embd": 64, "n_layer": 4, "n_head": 4},
        ),
        Kind("OPT", "OPT", {"ffn_dim": 128, "word_embed_proj_dim": 64}),
        Kind("BLOOM", "Bloom", {"n_layer": 4, "n_head": 4}),
        Kind("GPT-NeoX", "GPTNeoX", {}),
    ]


KINDS = {kind.name: kind for kind in _kinds()}


def build(name: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model of one of KINDS: four layers, 64 wide, four query and two KV heads, float32."""
    kind = KINDS[name]
    family, *classes = kind.family.split(":")
    config_class = getattr(transformers, classes[0] if classes else f"{family}Config")
    model_class = getattr(transformers, classes[1] if len(classes) > 1 else f"{family}ForCausalLM")
    sizes = {
        "vocab_size": 260,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.1,
        "eos_token_id": 257,
        "pad_token_id": 256,
        "bos_token_id": None,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config_class(**sizes | kind.changes | changes)).eval()
        for path, parameter in model.named_parameters():
            if path.endswith(("q_proj.weight", "k_proj.weight")):
                parameter.data.mul_(2.0)  # or attention were nearly uniform
    made: PreTrainedModel = model.requires_grad_(False)
    return made


@cache
def problems(name: str) -> tuple[str, str]:
    """Why one of KINDS cannot be evicted from, and why LookaheadKV cannot be made for it; empty if it can."""
    model = build(name)
    problem = eviction_problem(model)
    return problem, "" if problem else lookahead_problem(model)


EVICTED = [name for name in KINDS if not problems(name)[0]]
LEARNING = [name for name in EVICTED if not problems(name)[1]]


def table() -> str:
    """docs/architectures.md."""
    lines = [HEAD]
    for name in KINDS:
        problem, lookahead = problems(name)
        if problem:
            lines.append(f"| {name} | no: {problem} | no | no |")
            continue
        learns = f"no: {lookahead}" if lookahead else "yes"
        lines.append(f"| {name} | yes | {learns} | {'yes' if ours(build(name)) else 'no'} |")
    lines.append(FOOT)
    return "\n".join(lines) + "\n"


def main() -> None:
    page = Path(__file__).parents[1] / "docs" / "architectures.md"
    page.write_text(table(), encoding="utf-8")
    print(page, file=sys.stderr)


if __name__ == "__main__":
    main()
