"""A model's forward pass: our own block loop for Llama- and Qwen3-like models, transformers' for others.

The loop is that of transformers' LlamaModel and Qwen3Model, on their modules' weights, with three things
they have no place for: a look at what attends (`Pass`), LoRA on the last rows alone, one token a row into
caches of unequal length. Tests hold both ways equal. On CUDA its steps are fused kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
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
    hooks: Pass,
    adapter: Adapter | None = None,
) -> Tensor:
    """Final hidden states [B, Q, hidden] of the tokens embedded in `hidden`, which may be overwritten.

    positions int64 [1 or B, Q]. The cache takes their keys and values. `adapter` works on their last rows.
    """
    if ours(model):
        with unscaled(model):
            return _loop(model, hidden, positions, cache, hooks, adapter)
    with unscaled(model), adapter.hooked(model) if adapter is not None else nullcontext():
        out: Tensor = model.base_model(
            inputs_embeds=hidden,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            lkv_pass=hooks,
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


@dataclass(frozen=True, eq=False)
class _Linears:
    """The linears of a model's blocks, with the adapter's part on the last rows."""

    model: PreTrainedModel
    layers: Sequence[Any]
    adapter: Adapter | None
    ops: Any  # lkv.kernels.blocks, or the same functions in plain torch
    fused: Any | None  # lkv.kernels.linear where the rows are few

    def __call__(self, layer: int, inputs: Tensor, *names: str) -> list[Tensor]:
        """Outputs [B, Q, out] of linears `names` of a block, which share their inputs [B, Q, in]."""
        modules = [self.layers[layer].get_submodule(name) for name in names]
        if self.fused is not None and all(module.bias is None for module in modules):
            outs: list[Tensor] = self.fused.linears(inputs, [module.weight for module in modules])
            return outs
        outs = [F.linear(inputs, module.weight, module.bias) for module in modules]
        return outs if self.adapter is None else self.adapter.add(self.model, layer, names, inputs, outs)

    def gated(self, layer: int, inputs: Tensor) -> Tensor:
        """silu(gate) · up."""
        mlp = self.layers[layer].mlp
        if self.fused is not None and mlp.gate_proj.bias is None:
            out: Tensor = self.fused.gated(inputs, mlp.gate_proj.weight, mlp.up_proj.weight)
            return out
        out = self.ops.swiglu(*self(layer, inputs, *LINEARS[4:6]))
        return out


def _loop(
    model: PreTrainedModel,
    hidden: Tensor,
    positions: Tensor,
    cache: Cache,
    hooks: Pass,
    adapter: Adapter | None,
) -> Tensor:
    base = model.base_model
    layers = list(base.layers)  # type: ignore[arg-type]
    rotation = base.rotary_emb(hidden, positions)  # type: ignore[operator]
    ops: Any = blocks
    few: Any = None
    if kernels.usable(hidden, layers[0].self_attn.head_dim) and not hidden.requires_grad:
        from lkv.kernels import blocks as ops
        from lkv.kernels import linear as fused

        few = fused if adapter is None and hidden.shape[0] * hidden.shape[1] <= fused.ROWS else None
    linears = _Linears(model, layers, adapter, ops, few)
    norms = [norm for layer in layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    norms.append(base.norm)
    x, residual = ops.add_norm(hidden, None, norms[0].weight, norms[0].variance_epsilon)
    for i, layer in enumerate(layers):
        out = _attended(i, layer.self_attn, linears(i, x, *LINEARS[:3]), rotation, cache, hooks, ops)
        if hooks.finished is not None:
            hooks.finished(i)
        [x] = linears(i, out.flatten(2), LINEARS[3])
        x, residual = ops.add_norm(x, residual, norms[2 * i + 1].weight, norms[2 * i + 1].variance_epsilon)
        [x] = linears(i, linears.gated(i, x), LINEARS[6])
        x, residual = ops.add_norm(x, residual, norms[2 * i + 2].weight, norms[2 * i + 2].variance_epsilon)
    return x


def _attended(
    layer: int,
    attn: Any,
    projected: Sequence[Tensor],
    rotation: tuple[Tensor, Tensor],
    cache: Cache,
    hooks: Pass,
    ops: Any,
) -> Tensor:
    """A layer's attention [B, Q, H, D] from its queries, keys and values, which the cache takes."""
    q, k, v = (out.unflatten(-1, (-1, attn.head_dim)) for out in projected)  # [B, Q, heads, D]
    of_heads, lse = None, None
    if hasattr(attn, "q_norm"):
        of_heads = attn.q_norm.weight, attn.k_norm.weight, attn.q_norm.variance_epsilon
    if hooks.rows is not None:
        keys, values, slots = hooks.rows.keys[layer], hooks.rows.values[layer], hooks.rows.slots[layer]
        q = ops.rope_into(q, k, v, *rotation, of_heads, keys, values, slots)
        if blocks.shared(keys):
            out, lse = ops.attend_shared(q, keys, values, slots, attn.scaling)
        else:
            out = ops.attend_rows(q, keys, values, slots, attn.scaling)
    else:
        q, k = ops.rope(q, k, *rotation, of_heads)
        keys, values = cache.update(k, v.transpose(1, 2), layer)
        out, lse = attend(q, keys, values, attn.scaling)
    if hooks.observe is not None:
        hooks.observe(Attended(layer, q, keys, values, attn.scaling, lse))
    return out
