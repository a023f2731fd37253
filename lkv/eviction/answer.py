"""Answers: the model's own from the full cache, and texts as observers placed after a prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lkv.eviction.compact import compact
from lkv.eviction.decode import decode
from lkv.eviction.extend import extend
from lkv.eviction.prefilled import Prefilled
from lkv.interface import Tail


def full_cache_answers(prefilled: Prefilled) -> list[list[int]]:
    """The model's own answers, one a prompt of the batch, without their stop tokens; decoded once."""
    if prefilled.answers is None:
        asked = prefilled if prefilled.question is None else extend(prefilled, None, prefilled.question)
        answering = prefilled.answering
        decoded = decode(prefilled.model, compact(asked, None), answering.max_tokens, answering.stop)
        prefilled.answers = decoded.tokens
    return prefilled.answers


def answer_tail(prefilled: Prefilled) -> Tail:
    """The model's own answers placed after the prompts: the observers of the oracle and of the target."""
    return tail_after(prefilled, full_cache_answers(prefilled))


def tail_after(prefilled: Prefilled, texts: Sequence[Sequence[int]]) -> Tail:
    """Token ids, one list a prompt, as observers after it; an empty one becomes the first answer token."""
    if not all(texts):  # reading the first tokens waits for the device
        firsts = prefilled.first.tolist()
        texts = [text or [first] for text, first in zip(texts, firsts, strict=True)]
    tail = placed_after(texts, prefilled.ids.device)
    if prefilled.question is None:
        return tail
    assert tail.valid is not None
    # The question is read in between, and does not observe.
    silent = torch.zeros_like(prefilled.question, dtype=torch.bool)
    tokens = torch.cat([prefilled.question, tail.tokens], 1)
    return Tail(tokens, valid=torch.cat([silent, tail.valid], 1))


def placed_after(texts: Sequence[Sequence[int]], device: torch.device) -> Tail:
    """Token ids, one list a prompt, as observers after the prompts; shorter ones are padded."""
    longest = max(1, *map(len, texts))
    tokens = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=device)
    written = torch.tensor([len(text) for text in texts], device=device)
    return Tail(tokens, valid=torch.arange(longest, device=device) < written[:, None])
