"""Models: brought to a local folder once (`obtain`), then loaded from there (`load`). No hub at run time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lkv import origins
from lkv.attention import BACKEND_NAMES, best_backend
from lkv.cache import full_layers, prompt_cache
from lkv.errors import UserError, one_of
from lkv.folders import FORMAT, files_in, replace, replaceable, seal
from lkv.pretrained import check_template, loading, read_model, read_tokenizer
from lkv.records import fingerprint, read_json, require, sha256_file, write_hashed_json
from lkv.rope import context
from lkv.support import require_evictable
from lkv.theory import Shape
from lkv.writing import temporary_folder

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
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Loaded:
    """A model ready to be observed: evaluation mode, frozen, attention through lkv.attention.

    `fingerprint` changes with the weights, the configuration, the tokenizer and the chat template.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: str
    stop: frozenset[int]

    @property
    def backend(self) -> str:
        return BACKEND_NAMES[self.model.config._attn_implementation]

    @property
    def dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def context(self) -> int | None:
        """Tokens that the model reads: prompt, template and answer."""
        return context(self.model.config)

    @property
    def layers(self) -> int:
        return layer_counts(self.model)[0]

    @property
    def full_layers(self) -> int:
        """Layers that see the whole prompt: those that are evicted from."""
        return layer_counts(self.model)[1]

    @property
    def note(self) -> str:
        """What a table of this model must say; empty where every layer is evicted from."""
        whole = self.layers - self.full_layers
        return f"{whole} of {self.layers} layers have a sliding window and stay whole" if whole else ""


def layer_counts(model: PreTrainedModel) -> tuple[int, int]:
    """(all, those with full attention)."""
    cache = prompt_cache(model.config)
    return len(cache.layers), len(full_layers(cache))


def read_card(folder: str | Path) -> dict[str, Any]:
    """What `lkv model` wrote about models/NAME, with the spec's settings; needs no weights."""
    path, kinds = Path(folder) / CARD, {"name": "name", "fingerprint": "name"}
    return SETTINGS | require(read_json(path), kinds, path, "lkv model", OPTIONAL)


def load(folder: str | Path, device: torch.device, dtype: str = "auto") -> Loaded:
    """Loads models/NAME as `lkv model` wrote it. dtype auto: bfloat16 where the device computes in it."""
    folder = Path(folder)
    card = read_card(folder)
    check_files(folder, card)
    chosen = choose_dtype(dtype, device)
    with loading(str(folder), AGAIN):
        model = read_model(folder, str(folder), AGAIN, dtype=chosen, local_files_only=True)
    tokenizer = load_tokenizer(folder)
    model.eval().requires_grad_(False)
    torch.nn.Module.to(model, device)  # transformers' own `to` hides its arguments from the type checker
    model.set_attn_implementation(best_backend(device, chosen))
    require_evictable(model)
    return Loaded(model, tokenizer, card["name"], identity(folder, card), stop_ids(model, tokenizer))


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


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of models/NAME, from that folder alone."""
    folder = Path(folder)
    check_files(folder, read_card(folder), weights=False)
    with loading(f"{folder}'s tokenizer", AGAIN):
        return read_tokenizer(folder, local_files_only=True)


def shape_of(model: PreTrainedModel) -> Shape:
    """A model's sizes, as theory and plan count with them."""
    config = model.config.get_text_config()
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        intermediate=config.intermediate_size,
        vocabulary=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
    )


def of_shape(spec: dict[str, Any], device: torch.device, dtype: str = "auto") -> Loaded:
    """A model of a spec's shape with random weights, for timing: speed does not depend on the values.

    Its tokenizer is a stand-in, and it has no stop tokens.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    from lkv.device import memory
    from lkv.tiny import check_shape, tiny_tokenizer

    made = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
    shape = spec["shape"]
    if shape is None or shape["family"] not in made:
        raise UserError(
            f"{spec['name']} has no shape that random weights can be made of; "
            f"give `shape` in its file, of the family {' or '.join(made)}"
        )
    chosen = choose_dtype(dtype, device)
    check_shape(Shape(**shape), memory(device) / chosen.itemsize)
    config_class, model_class = made[shape["family"]]
    config = config_class(
        vocab_size=shape["vocabulary"],
        hidden_size=shape["hidden"],
        intermediate_size=shape["intermediate"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head_dim"],
        max_position_embeddings=1 << 20,
        tie_word_embeddings=shape["tied"],
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(chosen)
    try:
        with device, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            model = model_class(config)
    finally:
        torch.set_default_dtype(before)
    model.eval().requires_grad_(False)
    model.set_attn_implementation(best_backend(device, chosen))
    return Loaded(model, tiny_tokenizer(), spec["name"], fingerprint("random", shape), frozenset())


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> frozenset[int]:
    """End-of-answer tokens, from the generation config and the tokenizer."""
    generation = getattr(model, "generation_config", None)
    ids = getattr(generation, "eos_token_id", None)
    found = set(ids if isinstance(ids, list) else [ids])
    if tokenizer is not None:
        found.add(tokenizer.eos_token_id)
    return frozenset(i for i in found if i is not None)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    if name != "auto":
        if name not in DTYPES:
            raise one_of("dtype", name, ["auto", *DTYPES])
        return DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16
    return torch.bfloat16 if cpu_computes_bfloat16() else torch.float32


def cpu_computes_bfloat16() -> bool:
    """True where the CPU multiplies bfloat16 in hardware; elsewhere it is slower than float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def obtain(spec: dict[str, Any], out: str | Path) -> None:
    """Brings the model of a spec (config/models/NAME.yaml) to `out`, whole or not at all.

    An earlier model at `out` is replaced once the new one is complete; any other folder is refused.
    """
    source = spec["source"]
    make = origins.maker(source)
    out, place = Path(out), Path(source.get("path", "")).resolve()
    if "path" in source and (place == out.resolve() or out.resolve() in place.parents):
        raise UserError(f"source.path {place} is or lies in the output folder; give another --out")
    out = replaceable(out)
    model, tokenizer = make(source)
    if spec.get("chat_template") != "none":
        check_template(tokenizer, spec["name"])
    require_evictable(model)
    _check_limits(spec, model)
    with temporary_folder(out) as folder:
        made = folder / out.name
        _save(spec, model, tokenizer, made)
        replace(out, made)


def _check_limits(spec: dict[str, Any], model: PreTrainedModel) -> None:
    limit = context(model.config)
    if spec.get("context") not in (None, limit):
        raise UserError(
            f"the spec of {spec['name']} says context: {spec['context']}, its model has {limit}; "
            "correct the spec"
        )
    if limit is not None and (spec.get("max_prompt") or 0) > limit:
        raise UserError(
            f"max_prompt: {spec['max_prompt']} of {spec['name']} is beyond its context of {limit} tokens; "
            "give less: template and answer need room too"
        )


def _save(
    spec: dict[str, Any], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Weights, tokenizer, model.json and the mark that the folder is ours."""
    settings = {key: spec.get(key, default) for key, default in SETTINGS.items()}
    if settings["chat_template"] == "none":
        tokenizer.chat_template = None
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except SafetensorError as error:
        raise UserError(f"cannot write {folder}: {error}; free space") from None
    files = {name: sha256_file(folder / name) for name in sorted(files_in(folder))}
    weights = {name: digest for name, digest in files.items() if name.endswith(WEIGHTS)}
    config = read_json(folder / "config.json")
    config.pop("transformers_version", None)  # the same model under every version
    write_hashed_json(
        folder / CARD,
        {
            "format": FORMAT,
            "name": spec["name"],
            "fingerprint": fingerprint(weights, config),
            "licence": spec.get("licence", "unknown"),
            "source": spec["source"],
            "parameters": sum(p.numel() for p in model.parameters()),
            "layers": layer_counts(model)[0],
            "full_layers": layer_counts(model)[1],  # the others have a sliding window and stay whole
            "context": context(model.config),
            **settings,
            "sha256": files,
        },
    )
    seal(folder)
