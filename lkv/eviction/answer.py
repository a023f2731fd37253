"""Answers as observers: tokens placed after the prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lkv.eviction.prefilled import Prefilled
from lkv.interface import Tail


def answer_tail(prefilled: Prefilled) -> Tail:
    """The model's own answer placed after the prompt: the observers of the oracle and of the target."""
    answers = prefilled.answers
    if not all(answers):  # reading the first tokens waits for the device
        firsts = prefilled.first.tolist()
        answers = [answer or [first] for answer, first in zip(answers, firsts, strict=True)]
    tail = tail_of(answers, prefilled.ids.device)
    if prefilled.question is None:
        return tail
    # Read in between, and not an observer itself.
    unseen = torch.zeros_like(prefilled.question, dtype=torch.bool)
    tokens = torch.cat([prefilled.question, tail.tokens], 1)
    return Tail(tokens, valid=torch.cat([unseen, tail.valid], 1))  # type: ignore[list-item]


def tail_of(texts: Sequence[Sequence[int]], device: torch.device) -> Tail:
    """Token ids, one list a prompt, placed after the prompts; shorter ones are padded."""
    longest = max(1, *map(len, texts))
    tokens = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=device)
    written = torch.tensor([len(text) for text in texts], device=device)
    return Tail(tokens, valid=torch.arange(longest, device=device) < written[:, None])
