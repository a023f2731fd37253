"""Promises of training: KL falls on prompts it never saw, and a resumed run is the same run."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import observed
from forked import in_two_processes
from torch.utils._python_dispatch import TorchDispatchMode

from lkv.errors import UserError
from lkv.eviction.prefill import observe_tail, prefill
from lkv.interface import Tail
from lkv.lookahead import step
from lkv.lookahead.adapter import LookaheadKV
from lkv.lookahead.arm import Arm, Schedule
from lkv.lookahead.held_out import held_out
from lkv.lookahead.loss import Batch, batch_loss, prepare
from lkv.lookahead.responses import respond
from lkv.lookahead.train import train
from lkv.model.load import Loaded
from lkv.model.random_weights import tiny_tokenizer


@pytest.fixture
def loaded():
    return Loaded(observed("llama"), tiny_tokenizer(), "tiny", "f" * 16, frozenset({257}))


def answered(loaded, number):
    """Random prompts of two lengths with the model's own answers."""
    generator = torch.Generator().manual_seed(0)
    bare = []
    for i in range(number):
        length = (64, 96)[i % 2]
        ids = torch.randint(0, 256, (length,), generator=generator).tolist()
        bare.append({"id": i, "length": length, "kind": "table", "ids": ids})
    bare.sort(key=lambda prompt: prompt["length"])
    return sorted(respond(loaded, bare, tokens=8, at_once=5), key=lambda p: p["id"])


@pytest.fixture
def prompts(loaded):
    return answered(loaded, 24)


SCHEDULE = Schedule(steps=12, batch=4, learning_rate=5e-3, warmup_steps=2, held_out=6, seed=1)


def test_responses_are_the_models_own_greedy_answers(loaded, prompts):
    for prompt in prompts[:4]:
        ids = torch.tensor([prompt["ids"]])
        own = loaded.model.generate(ids, max_new_tokens=8, do_sample=False)[0, prompt["length"] :].tolist()
        cut = own[: own.index(257)] if 257 in own else own
        assert prompt["response"] == (cut or own[:1])


def test_training_lowers_kl_on_held_out_prompts(loaded, tmp_path):
    prompts = answered(loaded, 96)
    unseen = prompts[-16:]
    before = held_out(loaded, LookaheadKV.create(loaded.model, seed=1), unseen, 8)
    longer = replace(SCHEDULE, steps=60, batch=8, learning_rate=2e-2, held_out=16)
    adapter = train(loaded, prompts, longer, Arm(), tmp_path / "a", tmp_path / "t.csv", {"trained_on": "x"})
    after = held_out(loaded, adapter, unseen, 8)
    assert after.kl < 0.95 * before.kl  # random weights on random tokens: little to learn, but not nothing
    card = json.loads((tmp_path / "a" / "lookahead.json").read_text())
    assert card["held_out_kl_before"] == pytest.approx(before.kl, abs=1e-4)
    assert card["held_out_kl_after"] == pytest.approx(after.kl, abs=1e-4)
    assert card["held_out_recall"] == pytest.approx(after.recall, abs=1e-4)
    rows = pd.read_csv(tmp_path / "t.csv")
    assert rows.step.tolist() == list(range(1, 61))
    assert (rows.kl > 0).all()
    assert rows.samples.iloc[-1] == 480
    assert not (tmp_path / "a" / "checkpoint.pt").exists()


@pytest.mark.parametrize("keep_bytes", [0, 1 << 30])
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(
    loaded, prompts, tmp_path, monkeypatch, keep_bytes
):
    def run(name, every):
        out = tmp_path / name
        return train(loaded, prompts, SCHEDULE, Arm(), out, out / "t.csv", {}, keep_bytes, every)

    whole = run("whole", every=100)
    real, steps = step.batch_loss, []

    def killed(adapter, batch, by):
        if torch.is_grad_enabled():
            steps.append(1)
            if len(steps) == 8:
                raise KeyboardInterrupt
        return real(adapter, batch, by)

    monkeypatch.setattr(step, "batch_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        run("cut", every=3)
    assert (tmp_path / "cut" / "checkpoint.pt").exists()
    assert not (tmp_path / "cut" / "lookahead.json").exists()
    monkeypatch.setattr(step, "batch_loss", real)
    resumed = run("cut", every=3)
    for mine, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    tables = [pd.read_csv(tmp_path / name / "t.csv") for name in ("whole", "cut")]
    a, b = (table.drop(columns=["seconds", "tokens_per_s"]) for table in tables)
    assert a.equals(b)
    for name in ("adapter_model.safetensors", "lookahead_tokens.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_checkpoint_of_another_run_is_not_resumed(loaded, prompts, tmp_path, monkeypatch):
    real = step.batch_loss
    calls = []

    def killed(adapter, batch, by):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return real(adapter, batch, by)

    monkeypatch.setattr(step, "batch_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        train(loaded, prompts, SCHEDULE, Arm(), tmp_path, tmp_path / "t.csv", {}, 0, 2)
    monkeypatch.setattr(step, "batch_loss", real)
    other = Schedule(steps=4, batch=4, learning_rate=5e-3, warmup_steps=2, held_out=6, seed=2)
    train(loaded, prompts, other, Arm(), tmp_path, tmp_path / "t.csv", {}, 0, 2)
    assert len(pd.read_csv(tmp_path / "t.csv")) == 4


def test_an_arm_of_short_answers_learns_from_the_beginnings_of_long_ones(loaded, prompts, tmp_path):
    def run(name, given, arm):
        return train(loaded, given, SCHEDULE, arm, tmp_path / name, tmp_path / name / "t.csv", {})

    cut = [prompt | {"response": prompt["response"][:3]} for prompt in prompts]
    assert cut != prompts
    short, same = run("a", prompts, Arm(response_tokens=3)), run("b", cut, Arm())
    for mine, theirs in zip(short.parameters(), same.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert short.card["held_out_kl_after"] == same.card["held_out_kl_after"]


def test_a_batch_is_the_mean_of_its_prompts(loaded, prompts):
    same = [p for p in prompts if p["length"] == 64][:3]
    adapter = LookaheadKV.create(loaded.model, seed=1)
    with torch.no_grad():
        together = float(batch_loss(adapter, prepare(loaded, same)).kl)
        alone = [float(batch_loss(adapter, prepare(loaded, [p])).kl) for p in same]
    assert together == pytest.approx(sum(alone) / 3, rel=1e-4)


def test_held_out_recall_is_the_share_of_the_answers_own_top_entries(loaded, prompts):
    [prompt] = [p for p in prompts if p["length"] == 64][:1]
    adapter = LookaheadKV.create(loaded.model, seed=1)
    with torch.no_grad():
        batch = prepare(loaded, [prompt])
        prediction = observe_tail(batch.prefilled, adapter.tail())
    shares, group = [], loaded.model.config.num_attention_heads // batch.prefilled.kv_heads
    for target, predicted in zip(batch.target, prediction, strict=True):
        for head in range(batch.prefilled.kv_heads):
            rows = slice(head * group, (head + 1) * group)
            best, found = (set(x[0, rows].mean(0).argsort()[-16:].tolist()) for x in (target, predicted))
            shares.append(len(best & found) / 16)
    assert held_out(loaded, adapter, [prompt], 1).recall == pytest.approx(sum(shares) / len(shares))


def test_judge_qs_modules_are_tokens_alone_trained_by_the_squared_difference(loaded, prompts, tmp_path):
    arm = Arm("judgeq", tokens=8, lora="none", loss="mse")
    trained = train(loaded, prompts, SCHEDULE, arm, tmp_path / "a", tmp_path / "t.csv", {})
    assert trained.parameter_count() == 8 * loaded.model.config.hidden_size
    fresh = LookaheadKV.create(loaded.model, 8, seed=SCHEDULE.seed, lora="none")
    assert not torch.equal(trained.tokens, fresh.tokens)
    same = [p for p in prompts if p["length"] == 64][:2]
    batch = prepare(loaded, same)
    loss, kl = batch_loss(fresh, batch, "mse")
    with torch.no_grad():
        prediction = observe_tail(batch.prefilled, fresh.tail(2))
    pairs = zip(batch.target, prediction, strict=True)
    by_hand = [((t - p) ** 2).double().sum(-1).mean().item() for t, p in pairs]
    assert loss.item() == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)
    assert kl.item() == pytest.approx(batch_loss(fresh, batch).loss.item(), rel=1e-6)
    card = json.loads((tmp_path / "a" / "lookahead.json").read_text())
    assert (card["arm"], card["tokens"], card["lora"], card["loss"]) == ("judgeq", 8, "none", "mse")
    again = LookaheadKV.from_pretrained(tmp_path / "a", loaded.model)
    assert torch.equal(again.tokens, trained.tokens) and again.paths == []


@pytest.mark.parametrize(("lora", "last"), [("all", "mlp.down_proj"), ("qk", "self_attn.k_proj")])
def test_an_arm_adapts_the_linears_that_it_names(loaded, lora, last):
    paths = LookaheadKV.create(loaded.model, lora=lora).paths
    layers = loaded.model.config.num_hidden_layers
    assert len(paths) == {"all": 7 * (layers - 1) + 2, "qk": 2 * layers}[lora]
    assert [path for path in paths if ".0." in path][-1].endswith(last)


@pytest.mark.parametrize("by", ["kl", "mse"])
def test_what_cuda_captures_of_a_step_copies_nothing_from_the_host(loaded, prompts, by):
    class Watch(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.copied = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.lift_fresh.default and args[0].numel():  # torch.tensor(numbers)
                self.copied.append(args[0])
            return func(*args, **(kwargs or {}))

    ids = torch.tensor([prompt["ids"] for prompt in prompts if prompt["length"] == 64][:2])
    answers, valid = ids[:, :8], torch.ones(2, 8, dtype=torch.bool)
    adapter = LookaheadKV.create(loaded.model)
    with Watch() as watch:
        with torch.no_grad():
            prefilled, _ = prefill(loaded.model, ids)
            target = observe_tail(prefilled, Tail(answers, valid=valid))
        batch_loss(adapter, Batch(prefilled, target), by).loss.backward()
    assert watch.copied == []
    with Watch() as watch:
        torch.tensor([1])
    assert len(watch.copied) == 1


def test_too_few_prompts_say_so(loaded, prompts, tmp_path):
    with pytest.raises(
        UserError, match="do not fill a batch of 4; give 10 prompts or more, or a smaller batch"
    ):
        train(loaded, prompts[:8], SCHEDULE, Arm(), tmp_path / "a", tmp_path / "t.csv", {})
    assert not (tmp_path / "a").exists()


def test_the_rate_warms_up_and_falls_to_zero():
    rates = [SCHEDULE.rate(step) for step in range(12)]
    assert rates[0] == pytest.approx(2.5e-3)
    assert rates[1] == rates[2] == pytest.approx(5e-3)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] < 5e-4


SHARED = """
from pathlib import Path
import sys, torch
import test_train as t
from conftest import observed
from lkv.distributed.group import group
loaded = t.Loaded(observed("llama"), t.tiny_tokenizer(), "tiny", "f" * 16, frozenset({257}))
out = Path(sys.argv[1])
with group(torch.device("cpu")) as together:
    t.train(loaded, t.answered(loaded, 24), t.SCHEDULE, t.Arm(), out, out / "t.csv", {}, group=together)
"""


def test_two_processes_train_the_adapter_of_one(loaded, prompts, tmp_path):
    train(loaded, prompts, SCHEDULE, Arm(), tmp_path / "one", tmp_path / "one/t.csv", {})
    in_two_processes(SHARED, str(tmp_path / "two"))
    one, two = (LookaheadKV.from_pretrained(tmp_path / name) for name in ("one", "two"))
    torch.testing.assert_close(two.tokens, one.tokens, rtol=0, atol=1e-3)
    for path, place in one._places.items():  # files hold them in another order
        for mine, theirs in ((two.lora_a, one.lora_a), (two.lora_b, one.lora_b)):
            torch.testing.assert_close(mine[two._places[path]], theirs[place], rtol=0, atol=1e-3)
    tables = [pd.read_csv(tmp_path / name / "t.csv") for name in ("one", "two")]
    assert tables[0].kl.tolist() == pytest.approx(tables[1].kl.tolist(), rel=1e-3)
    for column in ("samples", "tokens"):
        assert tables[0][column].tolist() == tables[1][column].tolist()
