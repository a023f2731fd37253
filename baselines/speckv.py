"""SpecKV: an answer that a draft model wrote looks, beside the prompt's last 32 tokens.

s_j = max over a KV head's query heads and all observers i of softmax_j(q_i · k_j), max-pool 7, top-(C - 32)
plus the window (Galim et al., ICLR 2026, arXiv 2506.08373). The draft is greedy, on its own full cache, at
most 32 tokens (the LookaheadKV paper, p. 25) and no longer than the answer may get (the original's length).

Deviation: above 4,096 tokens the original makes the target's *prefill* sparse too (MInference), a confound of
accuracy and latency; that is not done here. An empty draft becomes the target's own first token; where the
draft rides along in the prefill (serving), that is not known yet and the window looks alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lkv.eviction.answer import answer_tail, tail_of
from lkv.eviction.draft import Writer, writer
from lkv.eviction.prefilled import Prefilled
from lkv.files.json_files import fingerprint
from lkv.interface import Method, PromptRows, Recipe, Tail

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lkv.model.load import Loaded

DRAFT_TOKENS = 32
WINDOW = PromptRows(last=32, over="max")


def method(
    draft: Loaded | None = None, tokenizer: PreTrainedTokenizerBase | None = None, tokens: int = DRAFT_TOKENS
) -> Method:
    """SpecKV with the model `draft` and the target's `tokenizer`; see lkv.eviction.draft.

    Without a draft model the target drafts for itself: the ceiling of a draft's quality.
    """
    who: list[str] = []
    write: Writer | None = None
    if draft is not None:
        assert tokenizer is not None, "another model's draft is read with the target's tokenizer"
        who, write = [draft.fingerprint, draft.dtype, draft.backend], writer(draft, tokenizer)

    def observers(prefilled: Prefilled, budgets: Sequence[int]) -> list[Tail]:
        most, drafted = min(tokens, prefilled.answer_tokens), replace(prefilled)
        answers = write(prefilled.ids, prefilled.stop, most) if write else prefilled.answers
        drafted.answers = [answer[:most] for answer in answers]
        return [replace(answer_tail(drafted), over="max", beside=WINDOW)] * len(budgets)

    def ahead(model: PreTrainedModel, ids: Tensor, settings: Mapping[str, Any]) -> Tail:
        most = min(tokens, settings.get("answer_tokens", Prefilled.answer_tokens))
        assert write is not None
        drafts = write(ids, settings.get("stop", frozenset()), most)
        return replace(tail_of(drafts, ids.device), over="max", beside=WINDOW)

    made = Method("speckv", Recipe(group="max", window=32), observers, reads=(WINDOW,))
    return replace(made, identity=fingerprint(*who, tokens), ahead=ahead if write else None)
