"""Importance and KL against float64 eager attention, computed another way."""

from __future__ import annotations

import pytest
import torch

from lkv.eviction import importance as maths
from lkv.eviction.answer import answer_tail, full_cache_answers
from lkv.eviction.prefill import observe_tail, prefill
from lkv.interface import Answering, PromptRows, Tail
from lkv.model.attention import SDPA


def eager_attention(model, ids, embeds=None):
    """Attention maps [1, H, T, T] a layer from transformers' eager path in float64."""
    model = model.double()
    model.set_attn_implementation("eager")
    if embeds is None:
        out = model(ids, output_attentions=True, use_cache=False)
    else:
        table = model.get_input_embeddings()
        inputs = torch.cat([table(ids), embeds.double()], 1)
        out = model(inputs_embeds=inputs, output_attentions=True, use_cache=False)
    model.set_attn_implementation(SDPA)
    model.float()
    return out.attentions


def close(ours, truth):
    for mine, theirs in zip(ours, truth, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), theirs, rtol=2e-4, atol=1e-6)


def test_the_oracle_and_the_target_see_what_eager_attention_says(model, prompt):
    prefilled, _ = prefill(model, prompt, answering=Answering(max_tokens=9))
    answer = torch.tensor(full_cache_answers(prefilled))
    ours = observe_tail(prefilled, answer_tail(prefilled))
    maps = eager_attention(model, torch.cat([prompt, answer], 1))
    n = prompt.shape[1]
    close(ours, [a[:, :, n:, :n].mean(2) for a in maps])


def test_prompt_rows_see_what_eager_attention_says(model, prompt):
    rows = [PromptRows(8), PromptRows(32), PromptRows(None)]
    prefilled, _ = prefill(model, prompt, rows)
    maps = eager_attention(model, prompt)
    close(prefilled.recorded[rows[0]], [a[:, :, -8:].mean(2) for a in maps])
    close(prefilled.recorded[rows[1]], [a[:, :, -32:].mean(2) for a in maps])
    close(prefilled.recorded[rows[2]], [a.mean(2) for a in maps])


def test_a_tail_of_embeddings_sees_what_eager_attention_says(model, prompt):
    embeds = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0))
    prefilled, _ = prefill(model, prompt)
    ours = observe_tail(prefilled, Tail(embeds))
    maps = eager_attention(model, prompt, embeds)
    n = prompt.shape[1]
    close(ours, [a[:, :, n:, :n].mean(2) for a in maps])


def test_answers_of_unequal_length_do_not_count_their_padding(model):
    ids = torch.randint(0, 256, (2, 60), generator=torch.Generator().manual_seed(3))
    prefilled, _ = prefill(model, ids)
    prefilled.answers = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10]]
    together = observe_tail(prefilled, answer_tail(prefilled))
    for b in range(2):
        alone, _ = prefill(model, ids[b : b + 1])
        alone.answers = [prefilled.answers[b]]
        for mine, theirs in zip(together, observe_tail(alone, answer_tail(alone)), strict=True):
            torch.testing.assert_close(mine[b : b + 1], theirs, rtol=1e-4, atol=1e-6)


def test_a_single_pass_sees_the_same_as_two_passes(model, prompt):
    tail = Tail(torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(0)))
    two, _ = prefill(model, prompt)
    one, ahead = prefill(model, prompt, tail=tail)
    assert ahead is not None
    for mine, theirs in zip(ahead, observe_tail(two, tail), strict=True):
        assert (mine - theirs).abs().max() <= 4e-6
    assert one.first == two.first
    assert one.cache.get_seq_length() == prompt.shape[1]


@pytest.mark.parametrize("over", ["mean", "max"])
def test_importance_does_not_depend_on_how_rows_are_chunked(monkeypatch, over):
    g = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(2, 6, 33, 8, generator=g), torch.randn(2, 3, 50, 8, generator=g)
    valid = torch.rand(2, 33, generator=g) < 0.8
    whole = maths.reference(queries, keys, 0.3, 40, causal_offset=17, reduction=over, valid=valid)
    monkeypatch.setattr(maths, "CHUNK_BYTES", (1, 1))  # 16 rows, the least
    pieces = maths.reference(queries, keys, 0.3, 40, causal_offset=17, reduction=over, valid=valid)
    torch.testing.assert_close(whole, pieces, rtol=1e-6, atol=1e-7)


def test_recorded_observers_see_every_key_and_rows_of_the_sequence_only_earlier_ones():
    queries, keys = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 6, 4)
    blind = maths.reference(queries, keys, 1.0, 6, causal_offset=None)
    causal = maths.reference(queries, keys, 1.0, 6, causal_offset=4)
    torch.testing.assert_close(blind, torch.full((1, 1, 6), 1 / 6))
    fifth = (1 / 5 + 1 / 6) / 2
    torch.testing.assert_close(causal[0, 0], torch.tensor([fifth] * 5 + [1 / 12]))


def test_kl_equals_the_textbook_formula_in_float64():
    g = torch.Generator().manual_seed(0)
    target, prediction = torch.rand(3, 4, 50, generator=g), torch.rand(3, 4, 50, generator=g)
    target[0, 0, :10] = 0
    p, q = target.double(), prediction.double()
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    truth = torch.nn.functional.kl_div(q.log(), p, reduction="none").sum(-1)
    torch.testing.assert_close(maths.kl_divergence(target, prediction).double(), truth, rtol=1e-5, atol=1e-6)
    assert maths.kl_divergence(target, target * 3).abs().max() < 1e-6


def test_recall_counts_common_entries():
    oracle = torch.tensor([[[1, 4, 7, 9]]])
    assert maths.top_recall(torch.tensor([[[0, 1, 7, 8]]]), oracle).item() == 0.5
    assert maths.top_recall(torch.tensor([[[9, 4]]]), oracle).item() == 0.5
    assert maths.top_recall(oracle.flip(-1), oracle).item() == 1.0
