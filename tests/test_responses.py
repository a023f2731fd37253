"""Promises of the answers: the model's own, in shards that a killed run goes on from, to the same bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import observed
from forked import in_two_processes

from lkv.data.frozen import freeze, load, sidecar
from lkv.data.shards import Stored, join
from lkv.errors import UserError
from lkv.lookahead import responses
from lkv.lookahead.responses import respond, respond_sharded
from lkv.model.load import Loaded
from lkv.model.random_weights import tiny_tokenizer

LENGTHS = [33, 20, 33, 71, 20, 45, 33, 52, 20, 64, 33]
TOKENS, AT_ONCE, SHARD = 6, 2, 3


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return Loaded(observed("llama"), tiny_tokenizer(), "tiny", "f" * 16, frozenset({257}))


@pytest.fixture
def prompts(tmp_path: Path) -> Stored:
    return stored(tmp_path / "prompts.jsonl", LENGTHS)


def stored(path: Path, lengths: Sequence[int], seed: int = 0) -> Stored:
    """Random prompts of these lengths, frozen."""
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]
    freeze(path, ({"id": i, "kind": "k", "length": len(x), "ids": x} for i, x in enumerate(ids)))
    return Stored(path)


def answer(loaded: Loaded, prompts: Stored, folder: Path, **changes: Any) -> list[Path]:
    settings = {"tokens": TOKENS, "at_once": AT_ONCE, "shard": SHARD} | changes
    return respond_sharded(loaded, prompts, folder=folder, **settings)


def responses_of(loaded: Loaded, prompts: Stored, at_once: int) -> list[dict[str, Any]]:
    return list(respond(loaded, sorted(prompts, key=lambda p: (p["length"], p["id"])), TOKENS, at_once))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class Interrupted:
    """Stands before decode_all: counts the batches, and stops the run at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int = 10**9) -> None:
        self.batches, self.at, self.real = 0, at, responses.decode_all
        monkeypatch.setattr(responses, "decode_all", self)

    def __call__(self, *args: Any) -> list[list[int]]:
        self.batches += 1
        if self.batches == self.at:
            raise KeyboardInterrupt
        return self.real(*args)


def test_answers_are_the_models_own_whatever_lengths_share_a_batch(loaded: Loaded, prompts: Stored) -> None:
    answered = responses_of(loaded, prompts, at_once=4)
    assert [p["length"] for p in answered] == sorted(LENGTHS)
    for prompt in answered:
        ids = torch.tensor([prompt["ids"]])
        own = loaded.model.generate(ids, max_new_tokens=TOKENS, do_sample=False)[
            0, prompt["length"] :
        ].tolist()
        cut = own[: own.index(257)] if 257 in own else own
        assert prompt["response"] == (cut or own[:1])


def test_shards_hold_an_answer_for_each_prompt_and_go_by_length(
    loaded: Loaded, prompts: Stored, tmp_path: Path
) -> None:
    paths = answer(loaded, prompts, tmp_path / "a")
    records = [list(load(path)) for path in paths]
    assert [len(part) for part in records] == [3, 3, 3, 2]
    ids = [record["id"] for part in records for record in part]
    assert ids == sorted(range(len(LENGTHS)), key=lambda i: (LENGTHS[i], i))
    together = {p["id"]: p["response"] for p in responses_of(loaded, prompts, at_once=1)}
    assert {record["id"]: record["response"] for part in records for record in part} == together


def test_the_joined_file_has_the_prompts_in_order_with_their_answers(
    loaded: Loaded, prompts: Stored, tmp_path: Path
) -> None:
    join(tmp_path / "all.jsonl", prompts, answer(loaded, prompts, tmp_path / "a"), seed=3)
    own = {p["id"]: p["response"] for p in responses_of(loaded, prompts, at_once=1)}
    assert list(load(tmp_path / "all.jsonl")) == [{**p, "response": own[p["id"]]} for p in prompts]
    facts = json.loads((tmp_path / "all.json").read_text())
    assert facts["seed"] == 3 and facts["records"] == len(LENGTHS)


def test_a_given_answer_is_taken_and_only_the_other_prompts_are_answered(
    loaded: Loaded, prompts: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {0: "4f", 3: "a longer answer than the target", 4: None, 7: "é, 12"}
    freeze(tmp_path / "given.jsonl", ({**p, "answer": given.get(p["id"])} for p in prompts))
    counted, some = Interrupted(monkeypatch), Stored(tmp_path / "given.jsonl")
    join(tmp_path / "all.jsonl", some, answer(loaded, some, tmp_path / "a", at_once=1))
    assert counted.batches == len(LENGTHS) - 3
    own = {p["id"]: p["response"] for p in responses_of(loaded, prompts, at_once=1)}
    for prompt in load(tmp_path / "all.jsonl"):
        text = given.get(prompt["id"])
        true = loaded.tokenizer(text, add_special_tokens=False).input_ids[:TOKENS] if text else None
        assert prompt["response"] == (true or own[prompt["id"]])
        if text:
            assert text.startswith(loaded.tokenizer.decode(prompt["response"]))


@pytest.mark.parametrize("batch", [1, 2, 4, 7])
def test_a_run_killed_anywhere_ends_in_the_bytes_of_a_whole_one(
    batch: int, loaded: Loaded, prompts: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    join(tmp_path / "whole.jsonl", prompts, answer(loaded, prompts, tmp_path / "whole"))
    cut = Interrupted(monkeypatch, at=batch)
    with pytest.raises(KeyboardInterrupt):
        answer(loaded, prompts, tmp_path / "cut")
    left = contents(tmp_path / "cut") if (tmp_path / "cut").exists() else {}
    assert len(left) == 2 * ((batch - 1) // 2)  # two batches and two files a shard: no part of a shard stays
    again = Interrupted(monkeypatch)
    again.real = cut.real
    join(tmp_path / "cut.jsonl", prompts, answer(loaded, prompts, tmp_path / "cut"))
    assert again.batches == 7 - 2 * ((batch - 1) // 2)  # what was finished is not answered again
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_what_a_kill_between_two_writes_leaves_is_done_again(
    loaded: Loaded, prompts: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = answer(loaded, prompts, tmp_path / "a")
    whole, notices = contents(tmp_path / "a"), list[str]()
    sidecar(paths[1]).unlink()
    paths[1].write_text("half")
    counted = Interrupted(monkeypatch)
    answer(loaded, prompts, tmp_path / "a", notify=notices.append)
    assert contents(tmp_path / "a") == whole
    assert counted.batches == 2
    assert notices == []


@pytest.mark.parametrize("harm", ["changed", "missing", "sidecar not JSON", "sidecar without a run"])
def test_a_damaged_shard_is_announced_and_made_again(
    harm: str, loaded: Loaded, prompts: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = answer(loaded, prompts, tmp_path / "a")
    whole, notices = contents(tmp_path / "a"), list[str]()
    match harm:
        case "changed":
            paths[2].write_bytes(paths[2].read_bytes().replace(b"1", b"2", 1))
        case "missing":
            paths[2].unlink()
        case "sidecar not JSON":
            sidecar(paths[2]).write_text("{")
        case _:
            sidecar(paths[2]).write_text('{"sha256": ""}')
    counted = Interrupted(monkeypatch)
    answer(loaded, prompts, tmp_path / "a", notify=notices.append)
    assert contents(tmp_path / "a") == whole
    assert counted.batches == 2
    assert len(notices) == 1
    assert "shard-00002" in notices[0] and "again" in notices[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": TOKENS + 1}, r"tokens: 6, now 7"),
        ({"shard": SHARD + 1}, r"shard: 3, now 4"),
        ({"version": 2}, r"version: 1, now 2"),
    ],
)
def test_shards_of_other_settings_are_refused_and_left_alone(
    changes: dict[str, Any], message: str, loaded: Loaded, prompts: Stored, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    paths = answer(loaded, prompts, tmp_path / "a")
    paths[0].unlink()
    sidecar(paths[0]).unlink()  # a stranger further on is found before the first is generated
    before, counted = contents(tmp_path / "a"), Interrupted(monkeypatch)
    with pytest.raises(UserError, match=rf"another run \({message}\); delete .*/a, or go back"):
        answer(loaded, prompts, tmp_path / "a", **changes)
    assert contents(tmp_path / "a") == before
    assert counted.batches == 0


def test_shards_of_another_model_or_other_prompts_are_refused(
    loaded: Loaded, prompts: Stored, tmp_path: Path
) -> None:
    answer(loaded, prompts, tmp_path / "a")
    other = Loaded(loaded.model, loaded.tokenizer, "tiny", "0" * 16, loaded.stop)
    with pytest.raises(UserError, match=r"fingerprint: 'f+', now '0+'"):
        answer(other, prompts, tmp_path / "a")
    with pytest.raises(UserError, match=r"prompts: '[0-9a-f]{64}', now '[0-9a-f]{64}'"):
        answer(loaded, stored(tmp_path / "others.jsonl", LENGTHS, seed=1), tmp_path / "a")


def test_a_prompt_beyond_the_models_context_is_refused_before_the_first_answer(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = loaded.model.config.max_position_embeddings
    long = stored(tmp_path / "long.jsonl", [20, context - TOKENS + 1])
    counted = Interrupted(monkeypatch)
    with pytest.raises(UserError, match=rf"{context - TOKENS + 1} tokens and its answer up to {TOKENS}"):
        answer(loaded, long, tmp_path / "a")
    assert counted.batches == 0 and not (tmp_path / "a").exists()


def test_stored_prompts_are_read_at_random_like_a_list(prompts: Stored, tmp_path: Path) -> None:
    listed = [json.loads(line) for line in prompts.path.read_text().splitlines()]
    assert len(prompts) == len(listed) == len(LENGTHS)
    assert list(prompts.lengths) == LENGTHS
    assert list(prompts) == [prompts[i] for i in range(len(prompts))] == listed
    assert prompts[-1] == listed[-1]
    assert prompts[2:9:3] == listed[2:9:3]
    with pytest.raises(IndexError):
        prompts[len(LENGTHS)]
    prompts.path.write_text(prompts.path.read_text().replace("33", "34"))
    with pytest.raises(UserError, match="damaged or was edited"):
        Stored(prompts.path)


@pytest.mark.parametrize(
    ("longest", "at_once"),
    [(1000, 25), (100, responses.AT_ONCE["cuda"]), (10**6, 1)],
    ids=["a quarter of the memory", "no more than pays", "one at least"],
)
def test_a_gpu_answers_as_many_prompts_at_once_as_it_holds(
    longest: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "memory", lambda device: 100_000_000)
    monkeypatch.setattr(responses, "entry_bytes", lambda model: 1000)
    loaded: Any = SimpleNamespace(model=SimpleNamespace(device=torch.device("cuda")))
    assert responses.answered_at_once(loaded, longest) == at_once


SHARED = """
from pathlib import Path
import sys, torch
import test_responses as t
from lkv.distributed.group import group
folder = Path(sys.argv[1])
loaded = t.Loaded(t.observed("llama"), t.tiny_tokenizer(), "tiny", "f" * 16, frozenset({257}))
with group(torch.device("cpu")) as together:
    paths = t.answer(loaded, t.Stored(folder / "prompts.jsonl"), folder / "two", group=together)
    assert all(path.is_file() for path in paths)
"""


def test_two_processes_take_turns_at_the_shards_and_write_the_bytes_of_one(
    loaded: Loaded, prompts: Stored, tmp_path: Path
) -> None:
    answer(loaded, prompts, tmp_path / "one")
    in_two_processes(SHARED, str(tmp_path))
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
