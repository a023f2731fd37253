"""A second pass: learned tokens read on a prompt's finished cache, as one CUDA graph.

Riding along in the prefill costs a tail next to no arithmetic, but some ten launches a layer:
on a small model these take longer than the prefill itself. There the prompt is read plainly instead, and its
keys and values are copied into storage of fixed shape, to which the tail's rows are fed like the rows of a
decode step, one token each, all sharing the storage. One graph serves all prompts of up to its width. Prompt
rows never see the tail, so both ways see the same but for rounding.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from weakref import ref

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from lkv.cache.evictable import entries
from lkv.cache.rows import RowsCache
from lkv.cache.sizes import tensor_bytes
from lkv.eviction import importance as maths
from lkv.eviction.decoder import pool
from lkv.eviction.importance import ObserverInputs
from lkv.eviction.observation import embedded
from lkv.eviction.prefilled import Prefilled
from lkv.interface import Adapter, Attended, Importance, Tail
from lkv.model.architecture import capturable
from lkv.model.attention import Pass
from lkv.model.cuda_graph import capture
from lkv.model.forward import implementation, states

# Multiply-adds of a prompt in the linears of a layer: an H100 does as many in a millisecond, which is what
# the launches of a layer with a tail take. Beyond, they hide behind the work, unless the host is slow
# (docs/performance.md).
LAUNCH_BOUND = 1 << 38
LEAST_WIDTH = 1024  # entries; widths are powers of two: few to capture


def launch_bound(model: PreTrainedModel, batch: int, tokens: int) -> bool:
    """Whether a prefill [batch, tokens] waits for launches more than for arithmetic: of one prompt, short for
    the size of the model's layers, on the fused kernels of CUDA.

    Models whose pass cannot be captured are left out.
    """
    if batch != 1 or implementation(model) != "fused" or not capturable(model):
        return False
    layer = model.base_model.get_submodule("layers.0")
    return tokens * sum(weight.numel() for weight in layer.parameters()) <= LAUNCH_BOUND


def learned(tail: Tail) -> bool:
    """Whether a tail is the same after every prompt, and so worth a capture: embeddings and their adapter."""
    return tail.adapter is not None and tail.tokens.is_floating_point() and tail.valid is None


def prefers(model: PreTrainedModel, observers: object, batch: int, tokens: int) -> bool:
    """Whether a separate observer pass is faster than appending these observers to the prefill."""
    return isinstance(observers, Tail) and learned(observers) and launch_bound(model, batch, tokens)


def can_observe(prefilled: Prefilled, tail: Tail) -> bool:
    """Whether the captured pass applies: learned tail, launch-bound model, equal cache length everywhere."""
    if not learned(tail) or not launch_bound(prefilled.model, len(prefilled.ids), prefilled.stored(0)):
        return False
    return len({prefilled.stored(layer) for layer in range(len(prefilled.cache.layers))}) == 1


def observe_tail(prefilled: Prefilled, tail: Tail) -> Importance:
    """As prefill.observe_tail, for a learned tail after one prompt: importance [1, H, N] a layer."""
    loaded = _loaded(prefilled, tail)
    return list(loaded.run()[..., : prefilled.stored(0)].clone())  # the next run writes over what it returns


def errors(prefilled: Prefilled, tail: Tail, layers: Collection[int]) -> list[float]:
    """As single_pass.score_errors, of the importance in a second pass."""
    loaded, found = _loaded(prefilled, tail), list[float]()

    def compare(attended: Attended) -> None:
        if attended.layer not in layers:
            return
        inputs = loaded.inputs(attended)
        ours, alone, truth = (
            maths.importance(given, exact)[..., : prefilled.stored(0)]
            for given, exact in ((inputs, False), (inputs._replace(lse=None), False), (inputs, True))
        )
        found.extend(float((mine - truth).norm() / truth.norm()) for mine in (ours, alone))

    loaded.feed(Pass(observe=compare, rows=loaded.cache))
    return found


def _loaded(prefilled: Prefilled, tail: Tail) -> SecondPass:
    """The pass for a tail and a prompt's length, with the prompt in it. On CUDA it is captured when it is
    asked for again: for one prompt alone a capture takes longer than it saves."""
    model, adapter = prefilled.model, tail.adapter
    assert adapter is not None
    width = max(LEAST_WIDTH, 1 << (prefilled.stored(0) - 1).bit_length())
    passes, key = pool(model).second_passes.setdefault(adapter, {}), (tail.rows, tail.reduction, width)
    found = passes.get(key)
    if found is None:
        found = passes[key] = SecondPass(model, tail, prefilled.cache, width)
    elif found.graph is None and model.device.type == "cuda":
        found.capture()
    found.load(prefilled, tail)
    return found


def held_bytes(model: PreTrainedModel) -> int:
    """Size of the storage that second passes of a model read."""
    return tensor_bytes(
        found.storage for passes in pool(model).second_passes.values() for found in passes.values()
    )


class SecondPass:
    """A tail of `rows` tokens over the cache of any prompt of up to `width` entries."""

    @torch.inference_mode(False)  # tensors made in that mode could not be written to outside it
    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, tail: Tail, like: Cache, width: int) -> None:
        assert tail.adapter is not None
        # Kept by model and adapter: with these in it, neither would ever be freed.
        self._model, self._adapter = ref(model), ref(tail.adapter)
        self.width, self.reduction, layers = width, tail.reduction, len(like.layers)
        keys, device = entries(like, 0)[0], model.device
        # [2, L, K, M, D]: keys and values, the tail's own right behind the prompt's
        self.storage = keys.new_zeros(2, layers, keys.shape[1], width + tail.rows, keys.shape[3])
        shared = self.storage[:, :, None].expand(-1, -1, tail.rows, -1, -1, -1)
        self.cache = RowsCache(shared[0], shared[1], [None] * layers)
        self.rows = torch.arange(tail.rows, device=device)
        self.hidden = embedded(model, tail).transpose(0, 1).clone()  # [rows, 1, hidden]
        self.position = torch.zeros(tail.rows, 1, dtype=torch.long, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None

    @torch.inference_mode(False)
    def capture(self) -> None:
        """From here on `run` replays a graph."""
        self.graph, self.seen = capture(self._run)

    @torch.no_grad()
    def load(self, prefilled: Prefilled, tail: Tail) -> None:
        """Copies a prompt's keys and values, [1, K, N, D] a layer, and the tail's embeddings."""
        stored, layers = prefilled.stored(0), range(len(prefilled.cache.layers))
        held = [entries(prefilled.cache, layer) for layer in layers]
        into = self.storage.flatten(0, 1)[:, None, :, :stored].unbind()  # keys of all layers, then values
        torch._foreach_copy_(into, [keys for keys, _ in held] + [values for _, values in held])
        self.hidden.copy_(embedded(prefilled.model, tail).transpose(0, 1))
        self.cache.slots.copy_(self.rows + stored)
        self.position.copy_((self.rows + prefilled.length)[:, None])

    def run(self) -> Tensor:
        """Importance [L, 1, H, width] of what was loaded; columns behind the prompt mean nothing. CUDA writes
        the next one over it."""
        if self.graph is None:
            return self._run()
        self.graph.replay()
        return self.seen

    def _run(self) -> Tensor:
        seen: list[Tensor] = []

        def record(attended: Attended) -> None:
            seen.append(maths.importance(self.inputs(attended)))

        self.feed(Pass(observe=record, rows=self.cache))
        return torch.stack(seen)

    @torch.no_grad()
    def feed(self, carried: Pass) -> None:
        """One pass of the tail over what was loaded, without gradient: the adapter works in place."""
        model, adapter = self._model(), self._adapter()
        assert model is not None and adapter is not None
        states(model, self.hidden.clone(), self.position, self.cache, carried, _AsOne(adapter))

    def inputs(self, attended: Attended) -> ObserverInputs:
        """The rows as observers, from a layer's query [rows, H, 1, D] and its shared key [rows, K, M, D].

        Row i sees the prompt's keys and the tail's up to its own, and no earlier prompt's behind them.
        """
        offset = self.cache.slots[attended.layer, :1]
        return ObserverInputs(
            attended.query.transpose(0, 2),
            attended.key[:1],
            attended.scaling,
            self.width,
            causal_offset=offset,
            reduction=self.reduction,
            lse=attended.lse,
        )


@dataclass(frozen=True)
class _AsOne:
    """An adapter of a sequence's last rows, for rows that are fed as one token each."""

    adapter: Adapter

    def add(
        self, model: PreTrainedModel, layer: int, names: Sequence[str], inputs: Tensor, outs: list[Tensor]
    ) -> list[Tensor]:
        self.adapter.add(model, layer, names, inputs.transpose(0, 1), [out.transpose(0, 1) for out in outs])
        return outs

    def hooked(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        raise NotImplementedError("a second pass runs in lkv.model.forward's own loop")
