"""Which models entries can be evicted from. One check: when a model is brought, loaded, or first used.

What a config cannot tell is tried: three tokens are read, and each layer's attention must say that the pass
reached it. docs/architectures.md has the table, made by tests/zoo.py.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicSlidingWindowLayer

from lkv.cache.evictable import EvictableLayer, full_layers, prompt_cache
from lkv.errors import UserError
from lkv.interface import Attended
from lkv.model.architecture import LINEARS, ours
from lkv.model.attention import Pass, Unsupported, observable
from lkv.model.forward import logits

_problems: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()
_drawable: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def require_evictable(model: PreTrainedModel) -> None:
    """Raises UserError, with the reason, for a model that entries cannot be evicted from."""
    if problem := eviction_problem(model):
        raise UserError(_refusal(model, "its cache cannot be evicted from", problem))


def require_lookahead(model: PreTrainedModel) -> None:
    """Raises UserError, with the reason, for a model that LookaheadKV's modules cannot be made for."""
    require_evictable(model)
    if problem := lookahead_problem(model):
        raise UserError(_refusal(model, "LookaheadKV cannot be trained for it", problem))


def _refusal(model: PreTrainedModel, what: str, problem: str) -> str:
    kind = model.config.model_type
    return f"{kind} is not supported, {what}: {problem}; docs/architectures.md lists the models that are"


def eviction_problem(model: PreTrainedModel) -> str:
    """Why entries cannot be evicted from this model; empty where they can. Known after the first call."""
    if ours(model) or model.device.type == "meta":
        return ""
    if model not in _problems:
        _problems[model] = layers_problem(model.config) or _positions_problem(model) or _probed(model)
    return _problems[model]


def lookahead_problem(model: PreTrainedModel) -> str:
    """Why LookaheadKV's LoRA has no place in this model; empty where it has."""
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, torch.nn.ModuleList):
        return f"its layers are not at {model.base_model_prefix}.layers"
    for layer in layers[: full_layers(prompt_cache(model.config))[-1] + 1]:
        for name in LINEARS:
            try:
                module = layer.get_submodule(name)
            except AttributeError:
                return f"its layers have no linear {name} (fused projections, experts, or another name)"
            if not hasattr(module, "in_features"):
                return f"{name} is a {type(module).__name__}, not a linear"
    return ""


def require_drawable(model: PreTrainedModel) -> None:
    """Raises UserError where forward.logits are not those of the model's own forward, up to rounding."""
    if ours(model):
        return
    if model not in _drawable:
        ids = torch.arange(3, device=model.device)[None]
        own = model(input_ids=ids, use_cache=False).logits[0, -1].float()
        again = logits(
            model, model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
        ).float()
        _drawable[model] = bool((own - again).norm() <= 0.02 * own.norm())
    if not _drawable[model]:
        raise UserError(
            f"answers cannot be drawn from {model.config.model_type}: its forward does more to the logits "
            "than a scale or a cap; use a temperature of 0, where the likeliest token is the same"
        )


def layers_problem(config: PretrainedConfig) -> str:
    """What a config alone tells; needs no weights."""
    if getattr(config, "is_encoder_decoder", False):
        return "an encoder reads its prompt"
    layers = prompt_cache(config).layers
    known = (EvictableLayer, DynamicSlidingWindowLayer)
    if any(not isinstance(layer, known) for layer in layers):
        return "some of its layers hold a state instead of keys and values (linear attention, or a hybrid)"
    if layers and not any(isinstance(layer, EvictableLayer) for layer in layers):
        return "all its layers have a sliding window"
    return ""


def _positions_problem(model: PreTrainedModel) -> str:
    rotary = any("rotary" in type(module).__name__.lower() for module in model.base_model.modules())
    if not rotary or getattr(model.config.get_text_config(), "alibi", False):
        return "its positions are not rotary, and would change with what is evicted"
    return ""


@torch.no_grad()
def _probed(model: PreTrainedModel) -> str:
    reached: set[int] = set()

    def record(attended: Attended) -> None:
        reached.add(attended.layer)

    cache = prompt_cache(model.config)
    embedded = model.get_input_embeddings()(torch.arange(3, device=model.device)[None])
    positions = torch.arange(3, device=model.device)[None]
    try:
        with observable(model):
            model.base_model(
                inputs_embeds=embedded,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                lkv_pass=Pass(observe=record),
            )
    except torch.OutOfMemoryError:
        raise
    except Unsupported as error:
        return str(error)
    except (LookupError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return f"its forward pass cannot be watched ({reason})"
    if reached != set(range(len(cache.layers))):
        return "its layers do not hand what a pass carries on to their attention"
    return ""
