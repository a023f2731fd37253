"""Brings a model to a local folder, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lkv.errors import UserError
from lkv.files.atomic import temporary_folder
from lkv.files.folders import FORMAT, files_in, replace, replaceable, seal
from lkv.files.json_files import fingerprint, read_json, write_hashed_json
from lkv.files.sums import sha256_file
from lkv.model import sources as origins
from lkv.model.card import CARD, SETTINGS, WEIGHTS
from lkv.model.load import layer_counts
from lkv.model.pretrained import check_template
from lkv.model.rope import context
from lkv.model.support import require_evictable


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
