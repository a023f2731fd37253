"""The files of an adapter folder, read whole or not at all.

PEFT's `adapter_config.json` and `adapter_model.safetensors`, the tokens in `lookahead_tokens.safetensors`,
and `lookahead.json`: sizes, base model, provenance, the hashes of the tensors and one of itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from lkv.errors import UserError
from lkv.files.json_files import read_json
from lkv.files.reading import require
from lkv.files.sums import sha256_file

ADAPTER, LEARNED, CARD = "adapter_model.safetensors", "lookahead_tokens.safetensors", "lookahead.json"
CONFIG = "adapter_config.json"
PEFT_PREFIX = "base_model.model."
FORMAT = 1
SIZES = {"format": "some", "tokens": "some", "rank": "some", "alpha": "number", "parameters": "count"}
AGAIN = "get the whole folder again, or train the adapter again with lkv train"


Halves: TypeAlias = "dict[str, Tensor]"  # by a linear's path


class Read(NamedTuple):
    """What a folder holds: its card, tokens [n, hidden], and A [r, in] and B [out, r] by a linear's path."""

    card: dict[str, Any]
    tokens: Tensor
    a: dict[str, Tensor]
    b: dict[str, Tensor]


def read(folder: str | Path) -> Read:
    """The adapter in `folder`. Raises UserError for files that are damaged, lack parts or disagree."""
    folder = Path(folder)
    place = folder / CARD
    card = require(
        read_json(place), {"sha256": "object", "base_model": "object", **SIZES}, place, "lkv train"
    )
    if card["format"] != FORMAT:
        raise UserError(f"{place}: format {card['format']} is not known here, {FORMAT} is; use a newer lkv")
    sums = require(card["sha256"], {ADAPTER: "name", LEARNED: "name"}, f"{place}, sha256", "lkv train")
    pairs, learned = (_checked(folder / name, sums[name]) for name in (ADAPTER, LEARNED))
    if set(learned) != {"tokens"} or learned["tokens"].dim() != 2:
        raise UserError(f"{folder / LEARNED} must hold the tensor 'tokens' [n, hidden] alone; {AGAIN}")
    tokens = learned["tokens"]
    if len(tokens) != card["tokens"]:
        raise UserError(
            f"{folder / LEARNED} holds {len(tokens)} tokens, {CARD} says {card['tokens']}; {AGAIN}"
        )
    a, b = _pairs(folder / ADAPTER, pairs, card["rank"])
    found = tokens.numel() + sum(tensor.numel() for tensor in pairs.values())
    if found != card["parameters"]:
        raise UserError(f"{folder} holds {found} parameters, {CARD} says {card['parameters']}; {AGAIN}")
    if a:
        _check_config(folder / CONFIG, card, set(a))
    return Read(card, tokens, a, b)


def _pairs(
    path: Path, tensors: Mapping[str, Tensor], rank: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    halves: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}
    for key, tensor in tensors.items():
        linear, _, half = key.removeprefix(PEFT_PREFIX).removesuffix(".weight").rpartition(".lora_")
        if not key.startswith(PEFT_PREFIX) or half not in ("A", "B") or tensor.dim() != 2:
            raise UserError(f"{path}: {key} is not half of a LoRA pair; {AGAIN}")
        if tensor.shape[half == "B"] != rank:
            raise UserError(f"{path}: {key} has the shape {list(tensor.shape)} at rank {rank}; {AGAIN}")
        halves[half == "B"][linear] = tensor
    a, b = halves
    if alone := sorted(a.keys() ^ b.keys()):
        raise UserError(f"{path}: {alone[0]} has only one half of its LoRA pair; {AGAIN}")
    return a, b


def _check_config(path: Path, card: Mapping[str, Any], linears: set[str]) -> None:
    """PEFT's own file must say what the card says: other programs read that one."""
    kinds = {"r": "some", "lora_alpha": "number", "target_modules": "texts"}
    config = require(read_json(path), kinds, path, "lkv train")
    said = (config["r"], config["lora_alpha"], set(config["target_modules"]))
    if said != (card["rank"], card["alpha"], linears):
        raise UserError(f"{path} and {CARD} do not agree on rank, alpha or the linears; {AGAIN}")


def _checked(path: Path, expected: str) -> dict[str, Tensor]:
    """The tensors of a file that is as it was written: floating point, finite."""
    if not path.is_file():
        raise UserError(f"no such adapter file: {path}; copy the whole adapter folder, or train it again")
    found = sha256_file(path)
    if found != expected:
        raise UserError(
            f"{path} is damaged: its SHA-256 is {found[:16]}…, {CARD} says {expected[:16]}…; "
            "restore the file or train the adapter again"
        )
    try:
        tensors: dict[str, Tensor] = load(path.read_bytes())
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file ({error}); train the adapter again") from None
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise UserError(f"{path}: {name} holds {tensor.dtype}, not floating point; {AGAIN}")
        if not bool(tensor.isfinite().all()):
            raise UserError(f"{path}: {name} holds values that are no numbers (NaN or infinity); {AGAIN}")
    return tensors
