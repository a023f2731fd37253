"""Drafts: what another model would answer to a prompt, in the ids of the model that the prompt was made for.

A draft model with the target's vocabulary reads and writes the target's ids. Another one reads the prompt's
text in its own tokens and, where the target's chat template frames the prompt, in its own; what it writes is
tokenised anew. Of a conversation of several turns only the outermost frame is exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from lkv.errors import UserError
from lkv.eviction.compact import compact
from lkv.eviction.decode import decode_all
from lkv.eviction.prefill import prefill
from lkv.interface import Answering
from lkv.model.chat_template import around

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from lkv.model.load import Loaded


# (prompts' ids [B, N], the target's stop tokens, most tokens) → a draft a prompt
Writer: TypeAlias = "Callable[[Tensor, frozenset[int], int], list[list[int]]]"


def writer(draft: Loaded, tokenizer: Tokenizer) -> Writer:
    """What writes greedy drafts with the model `draft`; `tokenizer` is the target's."""
    foreign = draft.tokenizer.get_vocab() != tokenizer.get_vocab()

    def write(ids: Tensor, stop: frozenset[int], tokens: int) -> list[list[int]]:
        prompts = ids.tolist()
        if foreign:
            prompts = [translated(ids, tokenizer, draft.tokenizer) for ids in prompts]
        # A target without stop tokens is being timed: then each draft has its full length, as its answer has.
        drafts = answers(draft, prompts, tokens, draft.stop if stop else frozenset())
        if foreign:
            # A character that the last token cuts in two is no text.
            texts = [_text(draft.tokenizer, ids, skip_special_tokens=True).rstrip("\ufffd") for ids in drafts]
            drafts = [tokenizer(text, add_special_tokens=False).input_ids[:tokens] for text in texts]
        return drafts

    return write


@torch.no_grad()
def answers(
    draft: Loaded, prompts: Sequence[Sequence[int]], tokens: int, stop: frozenset[int]
) -> list[list[int]]:
    """Greedy answers on the full cache, without their stop tokens, decoded as one batch."""
    rows = []
    for ids in prompts:  # one prefill each: their lengths may differ, and nothing is padded
        try:
            asked = torch.tensor([ids], device=draft.model.device)
            rows += compact(prefill(draft.model, asked, answering=Answering(max_tokens=tokens))[0], None)
        except UserError as error:
            raise UserError(f"{draft.name} cannot draft: {error}") from None
    return decode_all(draft.model, rows, tokens, stop, len(rows))


def translated(ids: Sequence[int], source: Tokenizer, target: Tokenizer) -> list[int]:
    """A prompt in another tokenizer's ids and chat template; raw where it is raw, or the other has none.

    The source's template is recognised by what it writes around a user turn.
    """
    text = _text(source, ids)
    before, after = around(source)
    if not (before and after and text.startswith(before)):
        return list(target(_text(source, ids, skip_special_tokens=True)).input_ids)
    user, framed, prefix = text.removeprefix(before).rpartition(after)
    if not framed:  # a prompt that ends within the user's turn
        user, prefix = prefix, ""
    before, after = around(target)
    text = before + user + (after if framed else "") + prefix
    return list(target(text, add_special_tokens=not target.chat_template).input_ids)


def _text(tokenizer: Tokenizer, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
    text = tokenizer.decode(
        list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)
    return text
