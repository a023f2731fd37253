"""A model folder's card, model.json: what `lkv model` wrote, checked before it is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lkv.errors import UserError
from lkv.files.folders import FORMAT, files_in
from lkv.files.json_files import fingerprint, read_json
from lkv.files.reading import require
from lkv.files.sums import sha256_file

CARD = "model.json"
WEIGHTS = ".safetensors"
READ = (WEIGHTS, ".json", ".jinja", ".model", ".txt", ".py", ".bin")  # of a folder, by transformers
AGAIN = "make it again with lkv model"
TOKENIZER_CONFIG = "tokenizer_config.json"
# Its keys that change no token.
LOCAL = ("is_local", "local_files_only", "name_or_path", "transformers_version")
# What a spec says about a model's use, and what holds where it says nothing.
SETTINGS = {"max_prompt": None, "learning_rate": None, "chat_template": "tokenizer"}
OPTIONAL = {"sha256": "object", "max_prompt": "some or null", "context": "some or null"}  # of a card's facts


def read_card(folder: str | Path) -> dict[str, Any]:
    """What `lkv model` wrote about models/NAME, with the spec's settings; needs no weights."""
    path, kinds = Path(folder) / CARD, {"name": "name", "fingerprint": "name"}
    return SETTINGS | require(read_json(path), kinds, path, "lkv model", OPTIONAL)


def identity(folder: Path, card: Mapping[str, Any]) -> str:
    """Sixteen hex digits of what answers depend on: weights and configuration, tokenizer and template."""
    files = {
        name: digest
        for name, digest in card["sha256"].items()
        if not name.endswith(WEIGHTS)
        and name not in ("config.json", "generation_config.json", TOKENIZER_CONFIG)
    }
    settled = read_json(folder / TOKENIZER_CONFIG) if TOKENIZER_CONFIG in card["sha256"] else {}
    return fingerprint(card["fingerprint"], files, {k: v for k, v in settled.items() if k not in LOCAL})


def check_files(folder: Path, card: Mapping[str, Any], weights: bool = True) -> None:
    """Raises UserError unless the files of models/NAME are those that `lkv model` wrote: a changed config or
    chat template would run under the fingerprint of another model."""
    if card.get("format") != FORMAT:
        raise UserError(f"{folder} was made by an earlier lkv, which kept no hash of every file; {AGAIN}")
    known = require(card, {"sha256": "object"}, folder / CARD, "lkv model")["sha256"]
    read = {name for name in files_in(folder) if _is_read(name)} - {CARD}
    for file in sorted({*known, *read}):
        if file not in known:
            raise UserError(f"{folder / file} was not written by lkv model; remove it, or {AGAIN}")
        if not weights and file.endswith(WEIGHTS):
            continue
        if not (folder / file).is_file() or sha256_file(folder / file) != known[file]:
            raise UserError(f"{folder / file} is missing, damaged or was edited; {AGAIN}")


def _is_read(name: str) -> bool:
    """Whether transformers would read a file; of folders inside it reads named chat templates alone."""
    return name.endswith(READ if "/" not in name else ".jinja")
