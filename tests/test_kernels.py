"""Promises of the Triton kernels, on the GPU where there is one and in Triton's interpreter elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from lkv.eviction import select as reference
from lkv.interface import Recipe
from lkv.kernels import blocks, decode, gather, linear, scores, topk
from lkv.kernels import reference as plain

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def each_with_a_dtype(*values: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Every case of `values`: on a GPU in every dtype, in the interpreter, which multiplies all of them in
    float32, in one of them in turn."""
    cases = list(product(*values))
    if GPU:
        return [(*case, dtype) for case in cases for dtype in DTYPES]
    return [(*case, DTYPES[i % len(DTYPES)]) for i, case in enumerate(cases)]


@pytest.fixture(autouse=True)
def drawn_anew() -> None:
    torch.manual_seed(7)


def normal(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape) * scale).to(dtype).to(DEVICE)


def relative(ours: Tensor, truth: Tensor) -> float:
    assert not ours.isnan().any()
    return float((ours.double() - truth.double()).norm() / truth.double().norm())


def attention64(queries: Tensor, keys: Tensor, scaling: float, first: int | None) -> tuple[Tensor, Tensor]:
    """Float64 attention maps [B, H, R, M] and rows' log-sum-exp, computed another way."""
    q, k = queries.double(), keys.double().repeat_interleave(queries.shape[1] // keys.shape[1], 1)
    logits = torch.einsum("bhrd,bhmd->bhrm", q, k) * scaling
    if first is not None:
        own = first + torch.arange(q.shape[2], device=q.device)[:, None]
        logits = logits.masked_fill(torch.arange(k.shape[2], device=q.device) > own, -math.inf)
    return logits.softmax(-1), logits.logsumexp(-1)


def reduced(maps: Tensor, over: str, valid: Tensor | None) -> Tensor:
    if valid is None:
        return maps.mean(2) if over == "mean" else maps.amax(2)
    maps = maps * valid[:, None, :, None]
    return maps.sum(2) / valid.sum(1)[:, None, None] if over == "mean" else maps.amax(2)


# Importance.

SHAPES = [  # B, H, K, R, M, D: grouped and not, odd everything, one observer and many, wide heads
    (1, 8, 2, 32, 300, 64), (2, 6, 2, 8, 130, 16), (1, 3, 3, 1, 77, 80), (1, 2, 1, 5, 200, 256),
    (1, 4, 4, 128, 150, 32),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "peaked", "dtype"), each_with_a_dtype(SHAPES, [False, True]))
def test_importance_is_float64s_to_a_thousandth(shape: Any, peaked: bool, dtype: torch.dtype) -> None:
    batch, heads, kv_heads, rows, stored, dim = shape
    queries = normal(batch, heads, rows, dim, dtype=dtype, scale=8.0 if peaked else 1.0)
    keys = normal(batch, kv_heads, stored, dim, dtype=dtype)
    scaling, first = dim**-0.5, stored - rows
    for start, prompt in ((first, first), (None, stored)):
        maps, lse = attention64(queries, keys, scaling, start)
        truth = maps.mean(2)[..., :prompt]
        for known in (None, lse.float()):
            ours = scores.importance(queries, keys, scaling, prompt, start, lse=known)
            assert ours.dtype == torch.float32
            assert relative(ours, truth) <= 1e-3, (start, known is not None)


@pytest.mark.parametrize("over", ["mean", "max"])
@pytest.mark.parametrize("first", [None, 60])
def test_rows_that_are_padding_do_not_count(first: int | None, over: Any) -> None:
    queries, keys = normal(2, 4, 20, 16), normal(2, 2, 80, 16)
    valid = (torch.arange(20) < torch.tensor([[3], [20]])).to(DEVICE)
    maps, _ = attention64(queries, keys, 0.3, first)
    for counted in (None, valid):
        ours = scores.importance(queries, keys, 0.3, 55, first, over, counted)
        assert relative(ours, reduced(maps, over, counted)[..., :55]) <= 1e-3


@pytest.mark.parametrize("group", ["mean", "max"])
@pytest.mark.parametrize(("pool", "kernel"), [("max", 7), ("avg", 5), ("max", 1), (None, 7)])
def test_grouped_and_pooled_scores_are_the_candidates(group: Any, pool: Any, kernel: int) -> None:
    queries, keys = normal(1, 6, 16, 32), normal(1, 2, 290, 32)
    recipe = Recipe(pool=pool, kernel=kernel, group=group, window=5, sinks=4)
    maps, _ = attention64(queries, keys, 0.2, 274)
    truth = reference.candidate_scores(maps.mean(2)[..., :274], recipe, 2)
    ours = scores.grouped_importance(queries, keys, 0.2, 4, 269, 274, group=group, pool=pool, kernel=kernel)
    assert ours.shape == truth.shape
    assert relative(ours, truth) <= 1e-3


def test_every_prompt_token_can_look() -> None:
    queries, keys = normal(1, 2, 200, 16), normal(1, 1, 200, 16)
    maps, _ = attention64(queries, keys, 0.25, 0)
    assert relative(scores.importance(queries, keys, 0.25, 200, 0), maps.mean(2)) <= 1e-3


def test_tensors_need_not_be_contiguous() -> None:
    queries, keys = normal(1, 9, 4, 16).transpose(1, 2), normal(1, 70, 2, 16).transpose(1, 2)
    maps, _ = attention64(queries, keys, 0.25, None)
    assert relative(scores.importance(queries, keys, 0.25, 70), maps.mean(2)) <= 1e-3


# Selection.


@pytest.mark.parametrize("kind", ["random", "ties", "pooled and tiny", "equal"])
@pytest.mark.parametrize(
    ("entries", "sinks", "window"),
    [
        *product((41, 1000), (0, 4), (0,)), (41, 3, 32), (1000, 3, 32), (5000, 4, 0),
        *([(5000, 0, 0), (5000, 3, 32)] if GPU else []),  # slow in the interpreter
    ],
)  # fmt: skip
def test_the_kept_entries_are_those_of_the_stable_sort(
    kind: str, entries: int, sinks: int, window: int
) -> None:
    found = torch.rand(2, entries - sinks - window)
    if kind == "ties":
        found = (found * 4).floor() / 4
    elif kind == "pooled and tiny":
        found = reference.pool(found, Recipe()) * 1e-30
    elif kind == "equal":
        found = torch.zeros_like(found)
    recipe, forced = Recipe(sinks=sinks, window=window), sinks + window
    budgets = [forced + 1, forced + (entries - forced) // 2, entries - 1]
    counts = torch.tensor(budgets, dtype=torch.int32, device=DEVICE).repeat_interleave(2) - forced
    ours = topk.keep(found.repeat(3, 1).to(DEVICE), counts, sinks, window, entries - 1).cpu()
    for i, budget in enumerate(budgets):
        truth = reference.keep(found[None], recipe, budget, entries)[0]
        assert torch.equal(ours[2 * i : 2 * i + 2, :budget], truth)


def test_rows_may_keep_different_numbers() -> None:
    found, counts = torch.rand(5, 100), [1, 2, 0, 95, 100]
    ours = topk.keep(
        found.to(DEVICE), torch.tensor(counts, dtype=torch.int32, device=DEVICE), 2, 3, 105
    ).cpu()
    for row, count in enumerate(counts):
        truth = reference.keep(found[row][None, None], Recipe(sinks=2, window=3), count + 5, 105)[0, 0]
        assert torch.equal(ours[row, : count + 5], truth)
        assert not ours[row, count + 5 :].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_entries_are_gathered_to_the_bit(dtype: torch.dtype) -> None:
    layers, kv_heads, count, dim = 3, 2, 40, 24
    tensors = [normal(kv_heads, 60 + i, dim, dtype=dtype) for i in range(layers)]
    tensors += [normal(60 + i, kv_heads, dim, dtype=dtype).transpose(0, 1) for i in range(layers)]
    kept = torch.stack([torch.randperm(60)[:count].sort().values for _ in range(layers * kv_heads)])
    kept = kept.view(layers, kv_heads, count).to(DEVICE)
    ours = gather.gather(tensors, kept)
    for i, tensor in enumerate(tensors):
        index = kept[i % layers][..., None].expand(-1, -1, dim)
        assert torch.equal(ours[i // layers, i % layers], tensor.gather(1, index))


# Blocks. The interpreter cuts bfloat16 off where a GPU rounds: twice the spacing is allowed.


def close(ours: Tensor, truth: Tensor) -> None:
    bound = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[truth.dtype]
    torch.testing.assert_close(ours.float(), truth.float(), rtol=bound, atol=bound)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_are_transformers_with_and_without_a_residual(dtype: torch.dtype) -> None:
    norm = LlamaRMSNorm(96).to(DEVICE, dtype)
    norm.weight.data = normal(96, dtype=dtype)
    x, residual = normal(2, 5, 96, dtype=dtype), normal(2, 5, 96, dtype=dtype)
    for before, total in ((None, x), (residual, x + residual)):
        given = None if before is None else before.clone()
        for ops in (blocks, plain):
            normed, left = ops.add_norm(
                x.clone(), None if given is None else given.clone(), norm.weight, norm.variance_epsilon
            )
            close(normed, norm(total))
            close(left, total)


@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu_is_silu_times_up(dtype: torch.dtype) -> None:
    gate, up = normal(3, 5000, dtype=dtype), normal(3, 5000, dtype=dtype)
    close(blocks.swiglu(gate.clone(), up), F.silu(gate) * up)


@pytest.mark.parametrize(
    ("own_positions", "normed", "dtype"), each_with_a_dtype([False, True], [False, True])
)
def test_rotations_are_transformers(own_positions: bool, normed: bool, dtype: torch.dtype) -> None:
    batch, tokens, heads, kv_heads, dim = 2, 5, 6, 2, 80
    q, k, v = (normal(batch, tokens, n, dim, dtype=dtype) for n in (heads, kv_heads, kv_heads))
    angles = torch.randn(batch if own_positions else 1, tokens, dim // 2).repeat(1, 1, 2)
    cos, sin = (turn.to(DEVICE, dtype) for turn in (angles.cos(), angles.sin()))
    q_norm, k_norm = (LlamaRMSNorm(dim).to(DEVICE, dtype) for _ in range(2))
    q_norm.weight.data, k_norm.weight.data = normal(dim, dtype=dtype), normal(dim, dtype=dtype)
    norms = (q_norm.weight, k_norm.weight, q_norm.variance_epsilon) if normed else None
    before = (q_norm(q), k_norm(k)) if normed else (q, k)
    truth = apply_rotary_pos_emb(*(x.transpose(1, 2) for x in before), cos, sin)
    ours = blocks.rope(q.clone(), k, cos, sin, norms)
    for mine, theirs in zip(ours, truth, strict=True):
        close(mine, theirs)
    keys, values = (torch.zeros(batch, kv_heads, 20, dim, dtype=dtype, device=DEVICE) for _ in range(2))
    slots = torch.tensor([3, 9], device=DEVICE)
    one = [x[:, :1].contiguous() for x in (q, k, v)]
    turned = blocks.rope_into(*one, cos[:, :1], sin[:, :1], norms, keys, values, slots)
    close(turned, truth[0][:, :, :1])
    for row, slot in enumerate(slots.tolist()):
        close(keys[row, :, slot], truth[1][row, :, 0])
        assert torch.equal(values[row, :, slot], v[row, 0])
        assert int(keys[row].any(-1).sum()) == int(values[row].any(-1).sum()) == kv_heads


@pytest.mark.parametrize(
    ("shape", "dtype"),
    each_with_a_dtype(
        [(3, 6, 2, 300, 64), (70 if GPU else 20, 8, 4, 70, 16), (1, 4, 4, 1000, 80), (2, 2, 1, 90, 256)]
    ),
)
def test_a_token_attends_to_its_rows_own_entries(shape: Any, dtype: torch.dtype) -> None:
    rows, heads, kv_heads, room, dim = shape
    q = normal(rows, heads, 1, dim, dtype=dtype)
    keys, values = (normal(rows, kv_heads, room, dim, dtype=dtype) for _ in range(2))
    slots = torch.randint(0, room, (rows,), device=DEVICE)
    slots[0] = 0
    seen = (torch.arange(room, device=DEVICE) <= slots[:, None])[:, None, None]
    k, v = (x.repeat_interleave(heads // kv_heads, 1) for x in (keys, values))
    logits = (q.double() @ k.double().transpose(-1, -2) * dim**-0.5).masked_fill(~seen, -math.inf)
    truth = (logits.softmax(-1) @ v.double()).transpose(1, 2)
    bound = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    for ops in (decode, plain):
        ours = ops.attend_rows(q, keys, values, slots, dim**-0.5)
        assert ours.shape == (rows, 1, heads, dim)
        assert relative(ours, truth) <= bound, ops.__name__


@pytest.mark.parametrize(
    ("shape", "dtype"),
    each_with_a_dtype(
        [
            (32, 9, 3, 700 if GPU else 200, 64),
            (8, 4, 4, 40, 16),
            (5, 2, 1, 90, 256),
            (40, 8, 2, 300 if GPU else 150, 80),
            (1, 2, 2, 65, 32),
        ]
    ),
)
def test_rows_that_share_a_cache_attend_to_all_before_them_whatever_lies_behind(
    shape: Any, dtype: torch.dtype
) -> None:
    rows, heads, kv_heads, room, dim = shape
    q = normal(rows, heads, 1, dim, dtype=dtype)
    keys, values = (normal(1, kv_heads, room, dim, dtype=dtype) for _ in range(2))
    every = 3 if rows * heads > 256 and not GPU else 1  # four seconds each in the interpreter
    for stored in (0, 1, (room - rows) // 2, room - rows)[::every]:
        maps, lse = attention64(q.transpose(0, 2), keys[:, :, : stored + rows], dim**-0.5, stored)
        wide = values[:, :, : stored + rows].double().repeat_interleave(heads // kv_heads, 1)
        truth = (maps @ wide).transpose(0, 2).transpose(1, 2)
        k, v = keys.clone(), values.clone()
        k[:, :, stored + rows :], v[:, :, stored + rows :] = math.nan, math.nan  # what an earlier prompt left
        slots = stored + torch.arange(rows, device=DEVICE)
        bound = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
        given = (q, k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1), slots, dim**-0.5)
        ours, known = decode.attend_shared(*given)
        assert ours.shape == (rows, 1, heads, dim)
        assert relative(ours, truth) <= bound
        torch.testing.assert_close(known.double(), lse, rtol=1e-4, atol=1e-4)
        slow, _ = plain.attend_shared(*given)
        assert relative(slow, truth) <= bound


# Linears of few tokens, and LoRA.


@pytest.mark.parametrize(("tokens", "dtype"), each_with_a_dtype([1, 5, 16]))
def test_few_tokens_linears_are_torchs(tokens: int, dtype: torch.dtype) -> None:
    x = normal(tokens, 1, 300, dtype=dtype)
    weights = [normal(n, 300, dtype=dtype, scale=0.1) for n in (96, 40, 33)]
    bound = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    for count in (1, 2, 3):
        outs = linear.linears(x, weights[:count])
        for out, weight in zip(outs, weights, strict=False):
            assert out.shape == (tokens, 1, weight.shape[0])
            assert relative(out, x.double() @ weight.double().T) <= bound
    gate, up = weights[0], normal(96, 300, dtype=dtype, scale=0.1)
    truth = F.silu(x.double() @ gate.double().T) * (x.double() @ up.double().T)
    assert relative(linear.gated(x, gate, up), truth) <= 2 * bound


@pytest.mark.parametrize(("count", "dtype"), each_with_a_dtype([1, 2, 3]))
def test_lora_is_added_to_the_last_rows_alone(count: int, dtype: torch.dtype) -> None:
    batch, tokens, n, inputs, rank = 2, 40, 7, 600, 8
    x = normal(batch, tokens, inputs, dtype=dtype)
    a = normal(count * rank, inputs, dtype=dtype, scale=0.05)
    bs = [normal(size, rank, dtype=dtype, scale=0.5) for size in (130, 50, 50)[:count]]
    before = [normal(batch, tokens, b.shape[0], dtype=dtype) for b in bs]
    outs = [out.clone() for out in before]
    linear.add_lora(x[:, -n:], a, bs, [out[:, -n:] for out in outs], 4.0)
    bound = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    for i, (out, old, b) in enumerate(zip(outs, before, bs, strict=True)):
        assert torch.equal(out[:, :-n], old[:, :-n])
        low = x[:, -n:].double() @ a[i * rank : (i + 1) * rank].double().T
        assert relative(out[:, -n:], old[:, -n:].double() + 4.0 * low @ b.double().T) <= bound


# Gradients.


@pytest.mark.parametrize(("shape", "dtype"), each_with_a_dtype([(8, False), (37, False), (8, True)]))
def test_gradients_of_the_mean_are_autograds(shape: Any, dtype: torch.dtype) -> None:
    (rows, padded), prompt, scaling = shape, 150, 0.25
    queries = normal(2, 6, rows, 32, dtype=dtype).requires_grad_()
    prompts, own = normal(2, 2, prompt, 32, dtype=dtype), normal(2, 2, rows, 32, dtype=dtype).requires_grad_()
    valid = (torch.arange(rows) < torch.tensor([[rows], [3]])).to(DEVICE) if padded else None
    back = normal(2, 6, prompt)
    ours = scores.MeanImportance.apply(queries, torch.cat([prompts, own], 2), scaling, prompt, prompt, valid)
    q64, own64 = (x.detach().double().requires_grad_() for x in (queries, own))
    maps, _ = attention64(q64, torch.cat([prompts.double(), own64], 2), scaling, prompt)
    truth = reduced(maps, "mean", valid)[..., :prompt]
    assert relative(ours.detach(), truth.detach()) <= 1e-3
    found = torch.autograd.grad(ours, (queries, own), back)
    expected = torch.autograd.grad(truth, (q64, own64), back.double())
    bound = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}[dtype]
    for mine, theirs in zip(found, expected, strict=True):
        assert relative(mine, theirs) <= bound
