"""The model's own greedy answers to the training prompts: the paper's targets are made from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from tqdm import tqdm

from lkv.engine import compact, decode, prefill
from lkv.models import Loaded


def respond(
    loaded: Loaded, prompts: Sequence[dict[str, Any]], tokens: int, at_once: int
) -> Iterator[dict[str, Any]]:
    """Each prompt with "response": up to `tokens` greedy token ids, the stop token left out.

    Prompts of one length are answered `at_once` at a time; the order of the prompts is kept per length.
    """
    by_length = sorted(prompts, key=lambda prompt: (prompt["length"], prompt["id"]))
    with tqdm(total=len(prompts), desc="responses", unit="prompt") as bar:
        for _, group in groupby(by_length, key=lambda prompt: prompt["length"]):
            batch = list(group)
            for start in range(0, len(batch), at_once):
                part = batch[start : start + at_once]
                ids = torch.tensor([prompt["ids"] for prompt in part], device=loaded.model.device)
                prefilled, _ = prefill(loaded.model, ids)
                answers = decode(loaded.model, compact(prefilled, None), tokens, loaded.stop).tokens
                for prompt, first, answer in zip(part, prefilled.first, answers, strict=True):
                    yield {**prompt, "response": answer or [first]}
                bar.update(len(part))
