"""The one prompt layer: user text to token ids, through the tokenizer's own chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lkv.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def chat_ids(tokenizer: PreTrainedTokenizerBase, user: str, answer_prefix: str = "") -> list[int]:
    """Token ids of one user turn, the assistant header, and `answer_prefix` as the answer's first words.

    Thinking is off where the template knows it (Qwen3): with 32 to 128 new tokens a thinking model would
    not reach its answer.
    """
    # The template writes its own BOS; adding special tokens again would double it.
    return tokenizer(chat_text(tokenizer, user) + answer_prefix, add_special_tokens=False).input_ids


def chat_text(tokenizer: PreTrainedTokenizerBase, user: str) -> str:
    """One user turn and the assistant header as the tokenizer's own template writes them."""
    if not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no chat template; "
            "use an instruct model, or set chat_template in its tokenizer_config.json"
        )
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": user}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    assert isinstance(text, str)
    return text
