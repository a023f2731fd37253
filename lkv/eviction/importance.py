"""What the observers see: attention of a few query rows over the prompt's keys. Pure functions.

`reference` and what else is here is plain torch: float32, chunked over rows, on any device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lkv import kernels
from lkv.eviction.select import candidate_scores
from lkv.interface import Recipe, Reduction

CHUNK_BYTES = (2 << 20, 256 << 20)  # of float32 logits at a time: in a CPU's cache; enough work for a GPU


class ObserverInputs(NamedTuple):
    """The inputs of one importance call, as `reference` takes them.

    queries [B, H, R, D], keys [B, K, M, D], the number of prompt keys, the causal offset, the reduction, and
    which rows count [B, R]. lse [B, H, R] float32: each row's natural log-sum-exp over the keys it sees, if
    known.
    """

    queries: Tensor
    keys: Tensor
    scaling: float
    prompt: int
    causal_offset: int | Tensor | None = None
    reduction: Reduction = "mean"
    valid: Tensor | None = None
    lse: Tensor | None = None


def importance(inputs: ObserverInputs, exact: bool = False) -> Tensor:
    """As `reference`; by fused kernels on CUDA, unless `exact` is asked for."""
    if not exact and _fused(inputs.queries):
        from lkv.kernels import scores as fused

        return fused.importance(*inputs)
    trains = (
        inputs.reduction == "mean"
        and isinstance(inputs.causal_offset, int)
        and inputs.causal_offset == inputs.prompt
    )
    if not exact and trains and _on_kernels(inputs.queries):
        from lkv.kernels import scores as fused

        queries, keys, scaling, prompt, first, _, valid, _ = inputs
        seen: Tensor = fused.MeanImportance.apply(queries, keys, scaling, prompt, first, valid)
        return seen
    return reference(*inputs[:-1])


def scores(inputs: ObserverInputs, recipe: Recipe, exact: bool = False) -> Tensor:
    """candidate_scores of the importance, [B, K, prompt - sinks - window], in one kernel on CUDA."""
    if not exact and _fused(inputs.queries) and recipe.order == "group_pool":
        from lkv.kernels import scores as fused

        queries, keys, scaling, prompt, offset, reduction, valid, lse = inputs
        low, high = recipe.sinks, max(recipe.sinks, prompt - recipe.window)
        pooled = (recipe.group, recipe.pool, recipe.kernel)
        return fused.grouped_importance(
            queries, keys, scaling, low, high, offset, reduction, valid, lse, *pooled
        )
    return candidate_scores(importance(inputs, exact), recipe, inputs.keys.shape[1])


def _fused(queries: Tensor) -> bool:
    return _on_kernels(queries) and not queries.requires_grad


def _on_kernels(queries: Tensor) -> bool:
    return kernels.usable(queries, queries.shape[-1])


def reference(
    queries: Tensor,
    keys: Tensor,
    scaling: float,
    prompt: int,
    causal_offset: int | Tensor | None = None,
    reduction: Reduction = "mean",
    valid: Tensor | None = None,
) -> Tensor:
    """Importance of each prompt entry: s_j = mean over observers i of softmax_j(q_i · k_j · scaling).

    queries [B, H, R, D] and keys [B, K, M, D] carry their rotary positions; the first `prompt` keys are the
    prompt's. Observer i sees keys 0 … causal_offset + i, the last of which is its own (the offset may be int
    [B], one a prompt); without an offset it sees all M. Each row's softmax runs over all the keys it sees;
    then the prompt's columns are taken. Rows with `valid` [B, R] False do not count. Returns [B, H, prompt]
    float32.
    LookaheadKV eq. 1-3 (R = answer or lookahead rows); an observation window (the last rows); all (R = N).
    """
    batch, heads, rows, dim = queries.shape
    kv_heads, stored = keys.shape[1], keys.shape[2]
    keys = keys.float().transpose(-1, -2)
    step = max(16, CHUNK_BYTES[keys.is_cuda] // (4 * batch * heads * stored))
    counted = torch.ones(batch, rows, device=keys.device) if valid is None else valid.float()
    total: Tensor | None = None
    for start in range(0, rows, step):
        block = queries[:, :, start : start + step].float() * scaling
        n = block.shape[2]
        # Keys that no row of the block sees are left out where that is known.
        seen = min(stored, causal_offset + start + n) if isinstance(causal_offset, int) else stored
        # Query heads of one KV head share its keys: fold them into the rows.
        logits = block.reshape(batch, kv_heads, -1, dim) @ keys[..., :seen]
        logits = logits.view(batch, heads, n, seen)
        if causal_offset is not None:
            begin = causal_offset.view(-1, 1) if isinstance(causal_offset, Tensor) else causal_offset
            own = torch.arange(start, start + n, device=keys.device).view(1, -1) + begin
            hidden = torch.arange(seen, device=keys.device) > own[..., None]
            logits = logits.masked_fill(hidden[:, None], float("-inf"))
        weights, counts = logits.softmax(-1), counted[:, None, start : start + n]
        if reduction == "mean":
            part = (counts[:, :, None] @ weights).squeeze(2)
        else:
            part = (weights * counts[..., None]).amax(2)
        part = F.pad(part, (0, max(0, prompt - seen)))[..., :prompt]
        if total is not None:
            part = total + part if reduction == "mean" else torch.maximum(total, part)
        total = part
    assert total is not None, "no observers"
    return total / counted.sum(1).clamp(min=1)[:, None, None] if reduction == "mean" else total


def kl_divergence(target: Tensor, prediction: Tensor) -> Tensor:
    """KL(ŝ_target ‖ ŝ_prediction) over the last axis, each divided by its own sum (LookaheadKV eq. 4).

    target, prediction [..., N] non-negative float32; returns [...]. In nats.
    """
    tiny = torch.finfo(torch.float32).tiny
    p = target / target.sum(-1, keepdim=True).clamp(min=tiny)
    log_q = (prediction / prediction.sum(-1, keepdim=True).clamp(min=tiny)).clamp(min=tiny).log()
    return torch.special.xlogy(p, p).sum(-1) - (p * log_q).sum(-1)


def top_recall(chosen: Tensor, oracle: Tensor) -> Tensor:
    """|chosen ∩ oracle| / C per head: chosen, oracle int64 [B, K, C] of unique entries; returns [B, K]."""
    both = torch.cat([chosen, oracle], -1).sort(-1).values
    return (both[..., 1:] == both[..., :-1]).sum(-1) / oracle.shape[-1]
