"""The answers to the training prompts, from which the targets are made: the model's own greedy ones (the
paper's), or true ones where prompts bring them along."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lkv.cache.rows import Row
from lkv.cache.sizes import entry_bytes
from lkv.data.frozen import freeze
from lkv.data.shards import Notify, Stored, finished
from lkv.distributed.group import Group
from lkv.errors import UserError
from lkv.eviction.compact import compact
from lkv.eviction.decode import decode_all
from lkv.eviction.prefill import prefill, prefill_many, prompts_at_once
from lkv.eviction.prefilled import Prefilled
from lkv.interface import Answering
from lkv.model.device import memory
from lkv.model.load import Loaded

log = logging.getLogger("lkv")


AT_ONCE = {"cpu": 16, "cuda": 128}  # prompts at most: a larger batch gains little


def answered_at_once(loaded: Loaded, longest: int) -> int:
    """How many prompts, answers included, share a decode. A quarter of the GPU's memory holds their caches:
    each is there twice, kept and in the storage that it is decoded from."""
    device = loaded.model.device
    if device.type != "cuda":
        return AT_ONCE["cpu"]
    return max(1, min(AT_ONCE["cuda"], memory(device) // 4 // (longest * entry_bytes(loaded.model))))


def check_fits(loaded: Loaded, longest: int, tokens: int) -> None:
    """Refuses prompts that leave no room for their answers in the model's context."""
    if loaded.context is not None and longest + tokens > loaded.context:
        raise UserError(
            f"the longest prompt has {longest} tokens and its answer up to {tokens}, {loaded.name}'s context "
            f"is {loaded.context}; give shorter prompts (train.lengths, train.max_tokens) or answers "
            "(train.response_tokens)"
        )


def respond_sharded(
    loaded: Loaded,
    prompts: Stored,
    tokens: int,
    at_once: int | None,
    folder: str | Path,
    shard: int = 512,
    version: int = 1,
    notify: Notify = log.warning,
    group: Group | None = None,
) -> list[Path]:
    """Answers in `folder`/shard-00000.jsonl and so on ({"id", "response"}), `shard` prompts each.

    `at_once` of them share a decode (None: as many as fit).

    A prompt that holds an "answer" is given it; the model answers the others. Prompts go by length, so that a
    batch holds neighbours. Finished shards of the same run (prompts, model, dtype, tokens, version) are kept:
    a killed run goes on, and ends in the same bytes. Damaged ones are generated again; those of another run
    are a UserError, before anything is generated. The processes of `group` take the shards in turn, and
    return when all shards are there.
    """
    group = group or Group()
    check_fits(loaded, max(prompts.lengths, default=0), tokens)
    at_once = at_once or answered_at_once(loaded, max(prompts.lengths, default=1) + tokens)
    order = sorted(range(len(prompts)), key=lambda i: (prompts.lengths[i], i))
    parts = [order[start : start + shard] for start in range(0, len(order), shard)]
    paths = [Path(folder) / f"shard-{number:05d}.jsonl" for number in range(len(parts))]
    run = {
        "prompts": prompts.sha256,
        "model": loaded.name,
        "fingerprint": loaded.fingerprint,
        "dtype": loaded.dtype,
        "stop": sorted(loaded.stop),
        "tokens": tokens,
        "shard": shard,
        "version": version,
    }
    mine = slice(group.rank, None, group.world)
    done = [finished(path, run, notify) for path in paths[mine]]
    group.wait()
    total = sum(map(len, parts[mine]))
    with tqdm(total=total, desc="responses", unit="prompt", disable=not group.first) as bar:

        def answers(part: Sequence[int]) -> Iterator[dict[str, Any]]:
            for prompt in _answered(loaded, prompts, part, tokens, at_once):
                yield {"id": prompt["id"], "response": prompt["response"]}
                bar.update()

        for path, part, there in zip(paths[mine], parts[mine], done, strict=True):
            if there:
                bar.update(len(part))
            else:
                freeze(path, answers(part), run=run)
    group.wait()
    return paths


def _answered(
    loaded: Loaded, prompts: Stored, part: Sequence[int], tokens: int, at_once: int
) -> Iterator[dict[str, Any]]:
    """The prompts `part` with their responses: those that bring an answer, then those to be answered."""
    unanswered = []
    for i in part:
        prompt = prompts[i]
        if prompt.get("answer") is None:
            unanswered.append(i)
        else:
            ids = loaded.tokenizer(prompt["answer"], add_special_tokens=False).input_ids
            yield {**prompt, "response": list(ids[:tokens])}
    yield from respond(loaded, (prompts[i] for i in unanswered), tokens, at_once)


def respond(
    loaded: Loaded, prompts: Iterable[dict[str, Any]], tokens: int, at_once: int
) -> Iterator[dict[str, Any]]:
    """Each prompt with "response": up to `tokens` greedy token ids, the stop token left out.

    `prompts` are sorted by length; `at_once` share as few prefills as may be, and one decode.
    """
    waiting = iter(prompts)
    while part := list(islice(waiting, at_once)):
        rows, first = list[Row](), list[int]()
        for prefilled in _prefilled(loaded, part, tokens):
            rows += compact(prefilled, None)
            first += prefilled.first.tolist()
        answers = decode_all(loaded.model, rows, tokens, loaded.stop, at_once)
        for prompt, token, answer in zip(part, first, answers, strict=True):
            yield {**prompt, "response": answer or [token]}


def _prefilled(loaded: Loaded, part: Sequence[dict[str, Any]], tokens: int) -> Iterator[Prefilled]:
    """On CUDA neighbours in length together, padded; elsewhere those of one length."""
    answering = Answering(max_tokens=tokens)
    while part:
        most = prompts_at_once(loaded.model, max(prompt["length"] for prompt in part))
        if most > 1:
            now = [prompt["ids"] for prompt in part[:most]]
            yield from prefill_many(loaded.model, now, answering=answering)
        else:
            length = part[0]["length"]
            now = [prompt["ids"] for prompt in part if prompt["length"] == length]  # sorted by length
            ids = torch.tensor(now, device=loaded.model.device)
            yield prefill(loaded.model, ids, answering=answering)[0]
        part = part[len(now) :]
