"""Promises of training: KL falls on prompts it never saw, and a resumed run is the same run."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import observed

from lkv import train as training
from lkv.errors import UserError
from lkv.lookahead import LookaheadKV
from lkv.models import Loaded
from lkv.responses import respond
from lkv.tiny import tiny_tokenizer
from lkv.train import Schedule, batch_loss, held_out_kl, prepare, train


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
    held_out = prompts[-16:]
    before = held_out_kl(loaded, LookaheadKV.create(loaded.model, seed=1), held_out, 8)
    longer = replace(SCHEDULE, steps=60, batch=8, learning_rate=2e-2, held_out=16)
    adapter = train(loaded, prompts, longer, "main", tmp_path / "a", tmp_path / "t.csv", {"trained_on": "x"})
    after = held_out_kl(loaded, adapter, held_out, 8)
    assert after < 0.95 * before  # random weights on random tokens: little to learn, but not nothing
    card = json.loads((tmp_path / "a" / "lookahead.json").read_text())
    assert card["held_out_kl_before"] == pytest.approx(before, abs=1e-4)
    assert card["held_out_kl_after"] == pytest.approx(after, abs=1e-4)
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
        return train(loaded, prompts, SCHEDULE, "main", out, out / "t.csv", {}, keep_bytes, every)

    whole = run("whole", every=100)
    real, steps = training.batch_loss, []

    def killed(adapter, batch):
        if torch.is_grad_enabled():
            steps.append(1)
            if len(steps) == 8:
                raise KeyboardInterrupt
        return real(adapter, batch)

    monkeypatch.setattr(training, "batch_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        run("cut", every=3)
    assert (tmp_path / "cut" / "checkpoint.pt").exists()
    assert not (tmp_path / "cut" / "lookahead.json").exists()
    monkeypatch.setattr(training, "batch_loss", real)
    resumed = run("cut", every=3)
    for mine, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    tables = [pd.read_csv(tmp_path / name / "t.csv") for name in ("whole", "cut")]
    a, b = (table.drop(columns=["seconds", "tokens_per_s"]) for table in tables)
    assert a.equals(b)
    for name in ("adapter_model.safetensors", "lookahead_tokens.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_checkpoint_of_another_run_is_not_resumed(loaded, prompts, tmp_path, monkeypatch):
    real = training.batch_loss
    calls = []

    def killed(adapter, batch):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return real(adapter, batch)

    monkeypatch.setattr(training, "batch_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        train(loaded, prompts, SCHEDULE, "main", tmp_path, tmp_path / "t.csv", {}, 0, 2)
    monkeypatch.setattr(training, "batch_loss", real)
    other = Schedule(steps=4, batch=4, learning_rate=5e-3, warmup_steps=2, held_out=6, seed=2)
    train(loaded, prompts, other, "main", tmp_path, tmp_path / "t.csv", {}, 0, 2)
    assert len(pd.read_csv(tmp_path / "t.csv")) == 4


def test_a_batch_is_the_mean_of_its_prompts(loaded, prompts):
    same = [p for p in prompts if p["length"] == 64][:3]
    adapter = LookaheadKV.create(loaded.model, seed=1)
    with torch.no_grad():
        together = float(batch_loss(adapter, prepare(loaded, same)))
        alone = [float(batch_loss(adapter, prepare(loaded, [p]))) for p in same]
    assert together == pytest.approx(sum(alone) / 3, rel=1e-4)


def test_too_few_prompts_say_so(loaded, prompts, tmp_path):
    with pytest.raises(UserError, match="do not fill a batch of 4; give more samples or a smaller batch"):
        train(loaded, prompts[:8], SCHEDULE, "main", tmp_path / "a", tmp_path / "t.csv", {})
    assert not (tmp_path / "a").exists()


def test_the_rate_warms_up_and_falls_to_zero():
    rates = [SCHEDULE.rate(step) for step in range(12)]
    assert rates[0] == pytest.approx(2.5e-3)
    assert rates[1] == rates[2] == pytest.approx(5e-3)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] < 5e-4


SHARED = """
import json, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_train as t
from conftest import observed
from lkv.parallel import group
loaded = t.Loaded(observed("llama"), t.tiny_tokenizer(), "tiny", "f" * 16, frozenset({257}))
out = Path(sys.argv[2])
with group(torch.device("cpu")) as together:
    t.train(loaded, t.answered(loaded, 24), t.SCHEDULE, "main", out, out / "t.csv", {}, group=together)
"""


def test_two_processes_train_the_adapter_of_one(loaded, prompts, tmp_path):
    train(loaded, prompts, SCHEDULE, "main", tmp_path / "one", tmp_path / "one/t.csv", {})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = Path(__file__).parent
    env = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    env["PYTHONPATH"] = str(here.parent)
    command = [sys.executable, "-c", SHARED, str(here), str(tmp_path / "two")]
    both = [
        subprocess.Popen(command, env=env | {"RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    one, two = (LookaheadKV.from_pretrained(tmp_path / name) for name in ("one", "two"))
    torch.testing.assert_close(two.tokens, one.tokens, rtol=0, atol=1e-3)
    for path, place in one._places.items():  # files hold them in another order
        for mine, theirs in ((two.lora_a, one.lora_a), (two.lora_b, one.lora_b)):
            torch.testing.assert_close(mine[two._places[path]], theirs[place], rtol=0, atol=1e-3)
    tables = [pd.read_csv(tmp_path / name / "t.csv") for name in ("one", "two")]
    assert tables[0].kl.tolist() == pytest.approx(tables[1].kl.tolist(), rel=1e-3)
    assert tables[0].samples.tolist() == tables[1].samples.tolist()
