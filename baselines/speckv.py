"""SpecKV: an answer that a draft model wrote observes, and so do the prompt's last 32 tokens.

s_j = max over a KV head's query heads and all observers i of softmax_j(q_i · k_j), max-pool 7, top-(C - 32)
plus the window (Galim et al., ICLR 2026, arXiv 2506.08373). The draft is greedy, on its own full cache, at
most 32 tokens (the LookaheadKV paper, p. 25) and no longer than the answer may get (the original's length).
Without a draft model the target drafts for itself: the ceiling of a draft's quality.

Deviation: above 4,096 tokens the original makes the target's *prefill* sparse too (MInference), a confound of
accuracy and latency; that is not done here. An empty draft becomes the target's own first token; where the
draft is part of the prefill (serving), that is not known yet and the window observes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from lkv.interface import Answering, Method, Prompt, PromptRows, Recipe, Tail
from lkv.model.shape import Shape
from lkv.model.theory import compact_s, decode_s, prefill_s, rows_s, scores_s

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lkv.model.load import Loaded

DRAFT_TOKENS = 32
WINDOW = PromptRows(last=32, reduction="max")


def own_drafts(prompt: Prompt, budgets: Sequence[int], tokens: int = DRAFT_TOKENS) -> list[Tail]:
    """The target's own answer, cut to the draft's length."""
    most = min(tokens, prompt.answering.max_tokens)
    drafts = [answer[:most] for answer in prompt.answers]
    return [replace(prompt.after(drafts), reduction="max")] * len(budgets)


def overhead_s(shape: Shape, length: int, budget: int, draft: Shape | None = None) -> float | None:
    if draft is None:
        return None
    written = prefill_s(draft, length) + DRAFT_TOKENS * decode_s(draft, length)
    read = rows_s(shape, DRAFT_TOKENS, length) + scores_s(shape, DRAFT_TOKENS + 32, length)
    return written + read + compact_s(shape, budget)


def method(
    draft: Loaded | None = None, tokenizer: PreTrainedTokenizerBase | None = None, tokens: int = DRAFT_TOKENS
) -> Method:
    """SpecKV with the model `draft` and the target's `tokenizer` (see lkv.eviction.draft)."""
    if draft is None:
        return replace(METHOD, observers=partial(own_drafts, tokens=tokens), needs=None, build=None)
    from lkv.eviction.answer import placed_after
    from lkv.eviction.draft import writer

    assert tokenizer is not None, "another model's draft is read with the target's tokenizer"
    write = writer(draft, tokenizer)

    def drafted(prompt: Prompt, budgets: Sequence[int]) -> list[Tail]:
        drafts = write(prompt.ids, prompt.answering.stop, min(tokens, prompt.answering.max_tokens))
        return [replace(prompt.after(drafts), reduction="max")] * len(budgets)

    def known_before(model: PreTrainedModel, ids: Tensor, answering: Answering) -> Tail:
        drafts = write(ids, answering.stop, min(tokens, answering.max_tokens))
        return replace(placed_after(drafts, ids.device), reduction="max")

    return replace(
        METHOD,
        observers=drafted,
        tail_before_prefill=known_before,
        identity=" ".join((draft.fingerprint, draft.dtype, draft.backend, str(tokens))),
        needs=None,
        build=None,
    )


METHOD = Method(
    "speckv",
    Recipe(group="max", window=32),
    own_drafts,
    extra_rows=WINDOW,
    needs="draft",
    build=lambda needs: method(needs.draft, needs.tokenizer),
    drafted_tokens=DRAFT_TOKENS,
    label="SpecKV",
    colour="#B8A800",  # Okabe and Ito's yellow, darkened for white paper
    marker="h",
    line=(0, (2, 1)),
    theory=overhead_s,
)
