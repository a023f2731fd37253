"""What the lookahead modules need of the model they are made for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from lkv.cache.evictable import full_layers, prompt_cache
from lkv.errors import UserError
from lkv.lookahead import probe
from lkv.model.architecture import LINEARS

if TYPE_CHECKING:
    pass

LOOKING = LINEARS[:2]  # q and k: all that reaches the last layer's attention map
ADAPTED = {"all": LINEARS, "qk": LOOKING, "none": ()}  # what carries LoRA; none: Judge Q's modules


def adapted_linears(model: PreTrainedModel, lora: str = "all") -> dict[str, Any]:
    """The linears that carry LoRA, by module path: those of ADAPTED[lora], in the last looking layer q and k.

    What comes after the last attention map reaches no score and would get no gradient (the published
    parameter counts agree: 5.40 M for Llama-3.2-1B, 20.55 M for Llama-3.1-8B).
    """
    last = full_layers(prompt_cache(model.config))[-1]
    layers, found = model.base_model.layers, {}
    assert isinstance(layers, nn.ModuleList)
    prefix = model.base_model_prefix
    for i in range(last + 1):
        for name in ADAPTED[lora] if i < last else ADAPTED[lora][:2]:
            try:
                module = layers[i].get_submodule(name)
            except AttributeError:
                raise UserError(
                    f"LookaheadKV cannot be made for {model.config.model_type}: its layers have no linear "
                    f"{name}; docs/architectures.md lists the models that it can be made for"
                ) from None
            found[f"{prefix}.layers.{i}.{name}"] = module
    return found


def describe(model: PreTrainedModel) -> dict[str, Any]:
    """What identifies a base model whatever its dtype: sizes, and some weights from bottom to top."""
    config = model.config.get_text_config()
    table, keys = probed(model)
    return {
        "name": Path(model.config._name_or_path or model.config.model_type).name,
        "model_type": model.config.model_type,
        "hidden_size": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "probe": probe.values([table, *keys]),
    }


def probed(model: PreTrainedModel) -> tuple[nn.Module, list[nn.Module]]:
    """The embeddings, and the key projections of the first, the middle and the last adapted layer."""
    keys = [linear for path, linear in adapted_linears(model).items() if path.endswith("k_proj")]
    return model.get_input_embeddings(), [keys[i] for i in (0, len(keys) // 2, -1)]


def embedding_table(model: PreTrainedModel) -> Tensor:
    """The input embeddings' weights [vocabulary, hidden], without gradient."""
    table = model.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    return table.detach()
