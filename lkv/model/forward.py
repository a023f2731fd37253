"""A model's forward pass: our own block loop for Llama- and Qwen3-like models, transformers' for others.

The loop is that of transformers' LlamaModel and Qwen3Model, on their modules' weights, with three things
they have no place for: a look at what attends (`Pass`), LoRA on the last rows alone, one token a row into
caches of unequal length. Tests hold both ways equal. On CUDA its steps are fused kernels.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from lkv import kernels
from lkv.interface import Attended
from lkv.kernels import reference as blocks
from lkv.model.architecture import LINEARS, ours
from lkv.model.attention import Pass, attend
from lkv.model.rope import unscaled

if TYPE_CHECKING:
    from lkv.interface import Adapter


def implementation(model: PreTrainedModel) -> str:
    """What runs, for the column of the same name: fused kernels, our loop in plain torch, transformers'."""
    if not ours(model):
        return "transformers"
    return "fused" if kernels.usable(next(model.parameters()), _head_dim(model)) else "torch"


def _head_dim(model: PreTrainedModel) -> int:
    return int(model.base_model.layers[0].self_attn.head_dim)  # type: ignore[index, union-attr]


def states(
    model: PreTrainedModel,
    hidden: Tensor,
    positions: Tensor,
    cache: Cache,
    carried: Pass,
    adapter: Adapter | None = None,
) -> Tensor:
    """Final hidden states [B, Q, hidden] of the tokens embedded in `hidden`, which may be overwritten.

    positions int64 [1 or B, Q]. The cache takes their keys and values. `adapter` works on their last rows.
    """
    if ours(model):
        with unscaled(model):
            return _loop(model, hidden, positions, cache, carried, adapter)
    with unscaled(model), adapter.hooked(model) if adapter is not None else nullcontext():
        out: Tensor = model.base_model(
            inputs_embeds=hidden,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            lkv_pass=carried,
        ).last_hidden_state
    return out


def logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The model's logits [..., V] of final hidden states, with the scale and cap that its own forward adds.

    `lkv.model.support` refuses to draw tokens where a model does something else to them.
    """
    out: Tensor = model.get_output_embeddings()(hidden)
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    if scale != 1.0:
        out = out * scale
    cap = getattr(config, "final_logit_softcapping", None)
    return out if cap is None else cap * (out / cap).tanh()


def _loop(
    model: PreTrainedModel,
    hidden: Tensor,
    positions: Tensor,
    cache: Cache,
    carried: Pass,
    adapter: Adapter | None,
) -> Tensor:
    base = model.base_model
    layers = list(base.layers)  # type: ignore[arg-type]
    cos, sin = base.rotary_emb(hidden, positions)  # type: ignore[operator]
    ops: Any = blocks
    few = False
    if kernels.usable(hidden, layers[0].self_attn.head_dim) and not hidden.requires_grad:
        from lkv.kernels import blocks as ops
        from lkv.kernels import linear as fused

        few = adapter is None and hidden.shape[0] * hidden.shape[1] <= fused.ROWS

    def linear(layer: int, inputs: Tensor, *names: str) -> list[Tensor]:
        """Linears that share their inputs, with the adapter's part on the last rows."""
        modules = [layers[layer].get_submodule(name) for name in names]
        if few and all(module.bias is None for module in modules):
            return fused.linears(inputs, [module.weight for module in modules])
        outs = [F.linear(inputs, module.weight, module.bias) for module in modules]
        return outs if adapter is None else adapter.add(model, layer, names, inputs, outs)

    def gated(layer: int, inputs: Tensor) -> Tensor:
        """silu(gate) · up."""
        mlp = layers[layer].mlp
        if few and mlp.gate_proj.bias is None:
            return fused.gated(inputs, mlp.gate_proj.weight, mlp.up_proj.weight)
        return ops.swiglu(*linear(layer, inputs, *LINEARS[4:6]))

    norms = [norm for layer in layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    norms.append(base.norm)
    x, residual = ops.add_norm(hidden, None, norms[0].weight, norms[0].variance_epsilon)
    for i, layer in enumerate(layers):
        attn = layer.self_attn
        q, k, v = (
            out.unflatten(-1, (-1, attn.head_dim)) for out in linear(i, x, *LINEARS[:3])
        )  # [B, Q, heads, D]
        of_heads = None
        if hasattr(attn, "q_norm"):
            of_heads = attn.q_norm.weight, attn.k_norm.weight, attn.q_norm.variance_epsilon
        lse = None
        if carried.rows is not None:
            stored = carried.rows.keys[i], carried.rows.values[i]
            q = ops.rope_into(q, k, v, cos, sin, of_heads, *stored, carried.rows.slots[i])
            (keys, values), given = stored, (q, *stored, carried.rows.slots[i], attn.scaling)
            if blocks.shared(keys):
                out, lse = ops.attend_shared(*given)
            else:
                out = ops.attend_rows(*given)
        else:
            q, k = ops.rope(q, k, cos, sin, of_heads)
            keys, values = cache.update(k, v.transpose(1, 2), i)
            out, lse = attend(q, keys, values, attn.scaling)
        if carried.observe is not None:
            carried.observe(Attended(i, q, keys, values, attn.scaling, lse))
        if carried.finished is not None:
            carried.finished(i)
        [x] = linear(i, out.flatten(2), LINEARS[3])
        x, residual = ops.add_norm(x, residual, norms[2 * i + 1].weight, norms[2 * i + 1].variance_epsilon)
        [x] = linear(i, gated(i, x), LINEARS[6])
        x, residual = ops.add_norm(x, residual, norms[2 * i + 2].weight, norms[2 * i + 2].variance_epsilon)
    return x
