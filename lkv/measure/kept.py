"""Where in the prompt the kept entries lie."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lkv.eviction.select import Kept

BINS = 192  # of a prompt, at most: what a figure can show
ANSWER, QUESTION, TEMPLATE = "answer", "question", "template"  # KEPT_COLUMNS' part
NAMED = ("benchmark", "task", "length")


def kept_share(kept: Kept | None, length: int) -> Tensor:
    """Share of layers and KV heads that keep each token of a prompt: float [length]; None keeps all."""
    if kept is None:
        return torch.ones(length)
    heads = [head for layer in kept for head in layer[0]]
    return torch.cat(heads).bincount(minlength=length).cpu() / len(heads)


def kept_bins(kept: Kept | None, length: int, parts: Sequence[str]) -> list[dict[str, Any]]:
    """KEPT_COLUMNS' start, end, kept and part of a prompt cut into `len(parts)` bins (see bin_edges)."""
    share = kept_share(kept, length)
    return [
        {"start": start, "end": end, "kept": float(share[start:end].mean()), "part": part}
        for (start, end), part in zip(bin_edges(length), parts, strict=True)
    ]


def bin_edges(length: int) -> list[tuple[int, int]]:
    """Bins of tokens [start, end), equally wide but for the last, BINS at most."""
    width = math.ceil(length / BINS)
    return [(start, min(start + width, length)) for start in range(0, length, width)]


def bin_parts(record: Mapping[str, Any], offsets: Sequence[tuple[int, int]] | None, length: int) -> list[str]:
    """What lies in each bin of a prompt of `length` tokens, by the tokens' `offsets` in the record's input.

    A bin that touches the answer is `answer`; else one that touches the question is `question`; one wholly
    outside the input is `template`. Empty: other context, or nothing known.
    """
    if offsets is None:
        return [""] * len(bin_edges(length))
    text, question_at = record["input"], record["question_at"]
    context = text[:question_at] if question_at else text
    answers = _places(context, record["outputs"])

    def part(spans: Sequence[tuple[int, int]]) -> str:
        if any(start < high and low < end for start, end in spans for low, high in answers):
            return ANSWER
        if question_at and any(question_at < end for _, end in spans):
            return QUESTION
        return TEMPLATE if all(end < 0 for _, end in spans) else ""

    assert len(offsets) == length, "offsets of another prompt"
    return [part(offsets[start:end]) for start, end in bin_edges(length)]


def _places(text: str, outputs: Sequence[str]) -> list[tuple[int, int]]:
    """Where one of the outputs stands in the text, as whole words: characters [start, end)."""
    words = [rf"(?<!\w){re.escape(output)}(?!\w)" for output in outputs if output.strip()]
    return [match.span() for word in words for match in re.finditer(word, text)]
