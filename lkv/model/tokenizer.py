"""A model's tokenizer, without its weights."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from lkv.model.card import AGAIN, check_files, read_card
from lkv.model.pretrained import loading, read_tokenizer


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of models/NAME, from that folder alone."""
    folder = Path(folder)
    check_files(folder, read_card(folder), weights=False)
    with loading(f"{folder}'s tokenizer", AGAIN):
        return read_tokenizer(folder, local_files_only=True)
