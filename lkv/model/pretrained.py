"""The one door to transformers' loaders: whole weights, of safetensors or GGUF, and no code of a model's own.

A folder or repository is somebody else's. What it lacks would be drawn at random, what it brings along
(`auto_map`, pickles, kernels by name) would be run, so both are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lkv.errors import UserError, out_of_memory
from lkv.model.chat_template import chat_text

SHOWN = 3  # names that an error lists
IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")
# Options of from_pretrained: nothing from pickles, and it says what did not come from the files. Tensors of
# another shape are passed over, so that all of them can be named.
WHOLE = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
LARGEST = {"num_hidden_layers": 1000, "hidden_size": 10**6, "intermediate_size": 10**7, "vocab_size": 10**8}
NO_CODE = "it brings code of its own, which is never run here"


@contextmanager
def loading(what: str, way_out: str) -> Iterator[None]:
    """Whatever the libraries raise on a damaged or foreign folder becomes one line."""
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        first, second, *_ = [*filter(None, map(str.strip, str(error).splitlines())), "", ""]
        reason = f"{first} {second}" if first.endswith(":") else first or type(error).__name__
        if "trust_remote_code" in str(error):
            reason = NO_CODE
        raise UserError(f"cannot load {what}: {reason}; {way_out}") from error


def read_config(place: str | Path, **options: Any) -> PretrainedConfig:
    config: PretrainedConfig = AutoConfig.from_pretrained(place, trust_remote_code=False, **options)
    return config


def read_tokenizer(place: str | Path, **options: Any) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        place, trust_remote_code=False, **options
    )
    return tokenizer


def read_model(place: str | Path, what: str, way_out: str, **options: Any) -> PreTrainedModel:
    """A causal language model. Each of its tensors came from the files, and each of the files' was used."""
    refuse_kernels(place, **{key: value for key, value in options.items() if key != "dtype"})
    loader: Any = AutoModelForCausalLM  # typed as if it gave the model alone
    model, facts = loader.from_pretrained(place, trust_remote_code=False, **WHOLE, **options)
    refuse_tensors(facts, what, way_out)
    _check_heads(model.config, what, way_out)
    model.config.__dict__.pop("auto_map", None)  # transformers' own class was taken, and is written
    made: PreTrainedModel = model
    return made


def refuse_kernels(place: str | Path, **options: Any) -> None:
    """A config that names a kernel for attention or experts would have its code fetched from the hub, and one
    with layers without end is built for ever."""
    raw, _ = PretrainedConfig.get_config_dict(place, **options)
    for name, most in LARGEST.items():
        if isinstance(given := raw.get(name), int) and given > most:
            raise UserError(f"cannot load {place}: {name} is {given} in its config.json, {most} at most")
    if kernel := _named_kernel(raw):
        raise UserError(f"cannot load {place}: its config.json names the kernel {kernel!r}; take it out")


def refuse_tensors(facts: Mapping[str, Any], what: str, way_out: str) -> None:
    """By transformers' loading info: tensors that are missing, unexpected or of another shape."""
    wrong = {
        "lacks": facts["missing_keys"],
        "does not know": facts["unexpected_keys"],
        "expects another shape of": [item[0] for item in facts["mismatched_keys"]],
    }
    if said := ", and ".join(f"the model {verb} {_listed(names)}" for verb, names in wrong.items() if names):
        raise UserError(f"cannot load {what}: {said}; {way_out}")


def check_template(tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    """Finds a chat template that cannot be rendered when a model is brought, not when it is first asked."""
    if tokenizer.chat_template is not None:
        with loading(f"the chat template of {what}", "mend it, or set chat_template: none in the spec"):
            chat_text(tokenizer, "text")


def _listed(names: Iterable[str]) -> str:
    found = sorted(names)
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"{len(found)} tensor{'s' * (len(found) > 1)} ({', '.join(found[:SHOWN])}{more})"


def _named_kernel(value: Any) -> str:
    """OWNER/NAME of a kernel that a config wants for attention or experts: code from the hub."""
    if not isinstance(value, Mapping):
        return ""
    own = [str(part) for key, part in value.items() if str(key).strip("_") in IMPLEMENTATIONS]
    found = [name for name in own if "/" in name] + [_named_kernel(part) for part in value.values()]
    return next(filter(None, found), "")


def _check_heads(config: PretrainedConfig, what: str, way_out: str) -> None:
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    if isinstance(heads, int) and isinstance(kv_heads, int) and heads % kv_heads:
        raise UserError(
            f"cannot load {what}: {heads} attention heads do not divide into {kv_heads} KV heads; {way_out}"
        )
