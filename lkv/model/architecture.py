"""What a model is made of: whether the block loop computes it, and whether a pass may be captured.

Users add hooks, LoRA, quantised or offloaded weights to a loaded model at any time. So both questions are
asked again before every pass. The answer compares the modules with those that were found first: microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from functools import cache
from itertools import chain, repeat
from operator import contains, is_
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all
from transformers import PreTrainedModel

from lkv.errors import UserError
from lkv.model.rope import length_dependent

FAMILIES = ("llama", "qwen3")
LINEARS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip


class State(Enum):
    """Of a model's modules against those of its blueprint."""

    SAME = "same"
    HOOKED = "hooked"  # a hook, or a `forward` of an instance (offloading), changes what they compute
    OTHER = "other"  # modules or weights were put in the place of others


class Blueprint:
    """The modules of a model's base as they were found: kinds, children, weights.

    Each is compared as one list: a model has hundreds of modules and is asked about before every pass.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        base = model.base_model
        self._modules = list(base.modules())
        self._kinds = [type(module) for module in self._modules]
        self._fields = [module.__dict__ for module in self._modules]
        self._hooks = [own[name] for own in self._fields for name in ("_forward_hooks", "_forward_pre_hooks")]
        self._parents = [own["_modules"] for own in self._fields if own["_modules"]]
        self._children = list(chain.from_iterable(map(dict.values, self._parents)))
        self._owners = [own["_parameters"] for own in self._fields if "weight" in own["_parameters"]]
        self._weights = [owned["weight"] for owned in self._owners]
        plain = all(type(parameter.data) is Tensor for parameter in base.parameters())
        self.looped = plain and _is_looped(model, set(self._kinds))
        self.settled = not any(_decides_in_python(kind) for kind in set(self._kinds))

    def state(self) -> State:
        if list(map(type, self._modules)) != self._kinds:
            return State.OTHER
        if list(chain.from_iterable(map(dict.values, self._parents))) != self._children:
            return State.OTHER
        weights = (owned.get("weight") for owned in self._owners)
        if not all(map(is_, weights, self._weights)):
            return State.OTHER
        for_all = hooks_of_all._global_forward_hooks or hooks_of_all._global_forward_pre_hooks
        replaced = any(map(contains, self._fields, repeat("forward")))
        return State.HOOKED if for_all or replaced or any(self._hooks) else State.SAME


_blueprints: WeakKeyDictionary[PreTrainedModel, Blueprint] = WeakKeyDictionary()


def blueprint(model: PreTrainedModel) -> tuple[Blueprint, State]:
    """The model's blueprint, drawn anew when its modules were exchanged, and whether hooks stand in its way.

    Equal blueprints are the same object: what was captured under another one is stale.
    """
    found = _blueprints.get(model)
    state = State.OTHER if found is None else found.state()
    if found is None or state is State.OTHER:
        found = _blueprints[model] = Blueprint(model)
        state = found.state()
    return found, state


def ours(model: PreTrainedModel) -> bool:
    """Whether the block loop computes what the model does: every module of its base is one of a
    plain Llama or Qwen3 with full attention in every layer, and nothing is hooked into them."""
    found, state = blueprint(model)
    return found.looped and state is State.SAME


def capturable(model: PreTrainedModel) -> bool:
    """Whether a CUDA graph of a pass stays true: hooks, routing to experts, adapters that can be switched and
    changing rotations run in Python at every pass."""
    found, state = blueprint(model)
    return state is State.SAME and found.settled and not length_dependent(model)


def _decides_in_python(kind: type) -> bool:
    """Whether such a module decides in Python, pass by pass, what it computes."""
    name = kind.__name__.lower()
    return kind.__module__.startswith("peft.") or "moe" in name or "expert" in name


def _is_looped(model: PreTrainedModel, kinds: set[type]) -> bool:
    config = model.config
    if config.model_type not in FAMILIES or config.hidden_act != "silu":
        return False
    if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        return False
    return kinds <= _known_modules(config.model_type)


@cache
def _known_modules(family: str) -> frozenset[type]:
    from transformers.activations import SiLUActivation
    from transformers.models.llama import modeling_llama as llama
    from transformers.models.qwen3 import modeling_qwen3 as qwen3

    shared = (nn.Linear, nn.Embedding, nn.ModuleList, nn.SiLU, SiLUActivation)
    if family == "llama":
        own: Sequence[type] = (
            llama.LlamaModel, llama.LlamaDecoderLayer, llama.LlamaAttention, llama.LlamaMLP,
            llama.LlamaRMSNorm, llama.LlamaRotaryEmbedding,
        )  # fmt: skip
    else:
        own = (
            qwen3.Qwen3Model, qwen3.Qwen3DecoderLayer, qwen3.Qwen3Attention, qwen3.Qwen3MLP,
            qwen3.Qwen3RMSNorm, qwen3.Qwen3RotaryEmbedding,
        )  # fmt: skip
    return frozenset((*shared, *own))


def unwrapped(model: Any) -> PreTrainedModel:
    """The transformers model inside a PEFT model, a compiled or a parallel one, whose passes really run.

    Raises UserError for PEFT methods that put tokens of their own before the prompt.
    """
    while not isinstance(model, PreTrainedModel):
        if hasattr(model, "_orig_mod"):  # torch.compile
            model = model._orig_mod
        elif hasattr(model, "get_base_model"):  # PEFT
            if getattr(model.active_peft_config, "is_prompt_learning", False):
                kind = model.active_peft_config.peft_type.value
                raise UserError(
                    f"a model with {kind.lower()} puts tokens of its own before the prompt, which eviction "
                    "does not know; use a LoRA-like adapter, or merge it into the model"
                )
            model = model.get_base_model()
        elif isinstance(getattr(model, "module", None), nn.Module):  # DistributedDataParallel
            model = model.module
        else:
            raise UserError(
                f"a {type(model).__name__} is not a model of transformers; give one, or one inside PEFT or "
                "torch.compile"
            )
    return model
