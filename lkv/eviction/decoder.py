"""Decode steps over many rows, captured as CUDA graphs where they can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lkv.cache.evictable import Layers, prompt_cache
from lkv.cache.rows import Row, RowsCache, windows
from lkv.cache.sizes import tensor_bytes
from lkv.eviction.sampling import drawn
from lkv.interface import Attended
from lkv.model.architecture import Blueprint, blueprint, capturable
from lkv.model.attention import Pass
from lkv.model.cuda_graph import capture
from lkv.model.forward import logits, states

if TYPE_CHECKING:
    from lkv.interface import Adapter


class Decoder:
    """One step of `rows` rows over storage of `width` entries, captured on CUDA."""

    def __init__(
        self,
        model: PreTrainedModel,
        cache: RowsCache,
        record: bool,
        temperature: float = 0.0,
        captured: bool = False,
    ) -> None:
        self._model = ref(model)  # decoders are kept by model: with one in each, no model would ever be freed
        self.cache, self.record, self.temperature = cache, record, temperature
        rows, device = cache.slots.shape[1], model.device
        self.token = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.position = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.seed = torch.zeros(rows, dtype=torch.long, device=device)
        self.queries: Tensor | None = None  # [L, R, H, 1, D] of the latest step
        self.scalings: list[float] = []
        self.graph: torch.cuda.CUDAGraph | None = None
        if captured:
            self.graph, _ = capture(self._step)

    def load(self, rows: Sequence[Row]) -> None:
        self.cache.load(rows)
        self.token[: len(rows), 0] = torch.stack([row.token for row in rows])
        positions = torch.tensor([row.position for row in rows])
        self.position[: len(rows), 0] = positions.to(self.position.device, non_blocking=True)
        if self.temperature:
            self.seed[: len(rows)] = torch.tensor([row.seed for row in rows]).to(self.seed.device)

    def step(self) -> None:
        """Feeds `token`; the next one stands in its place."""
        if self.graph is None:
            self._step()
        else:
            self.graph.replay()

    def _step(self) -> None:
        seen: list[Tensor] = []
        scalings: list[float] = []

        def remember(attended: Attended) -> None:
            seen.append(attended.query)
            scalings.append(attended.scaling)

        model = self._model()
        assert model is not None
        hidden = model.get_input_embeddings()(self.token)
        carried = Pass(observe=remember if self.record else None, rows=self.cache)
        last = states(model, hidden, self.position, self.cache, carried)
        scored = logits(model, last)[:, 0]
        self.token[:, 0] = drawn(scored, self.temperature, self.seed, self.position[:, 0])
        self.position += 1
        self.cache.slots += 1
        if self.record:
            self.queries, self.scalings = torch.stack(seen), scalings


@dataclass(eq=False)
class _Storage:
    """Room for the keys and values of a model's rows, in any shape: flat, [L, n] where layers are alike."""

    keys: Layers
    values: Layers

    @classmethod
    def of(cls, like: Row, rows: int, width: int) -> _Storage:
        first, sizes = like.keys[0], _sizes(like, rows, width)
        if len(set(sizes)) == 1:
            shape = len(sizes), sizes[0]
            return cls(first.new_zeros(shape), first.new_zeros(shape))
        return cls([first.new_zeros(n) for n in sizes], [first.new_zeros(n) for n in sizes])

    def holds(self, like: Row, rows: int, width: int) -> bool:
        sizes = _sizes(like, rows, width)
        return all(flat.numel() >= n for flat, n in zip(self.keys, sizes, strict=True))

    def cache(self, model: PreTrainedModel, like: Row, rows: int, width: int) -> RowsCache:
        sizes = _sizes(like, rows, width)
        shapes = [(rows, k.shape[0], width, k.shape[2]) for k in like.keys]

        def shaped(flats: Layers) -> Layers:
            if isinstance(flats, Tensor):
                return flats[:, : sizes[0]].view(len(sizes), *shapes[0])
            return [flat[:n].view(shape) for flat, n, shape in zip(flats, sizes, shapes, strict=True)]

        return RowsCache(shaped(self.keys), shaped(self.values), windows(prompt_cache(model.config)))


def _sizes(like: Row, rows: int, width: int) -> list[int]:
    return [rows * k.shape[0] * width * k.shape[2] for k in like.keys]


class Pool:
    """A model's storage, which grows when a shape asks for more, and on it the captured decoders by shape.

    `second_passes` (lkv.eviction.second_pass) are kept by adapter, and by their shape.
    """

    def __init__(self, drawn_for: Blueprint) -> None:
        self.drawn_for = drawn_for
        self.storage: _Storage | None = None
        self.decoders: dict[tuple[int, int, bool, float], Decoder] = {}
        self.second_passes: WeakKeyDictionary[Adapter, dict[Any, Any]] = WeakKeyDictionary()

    def decoder(self, model: PreTrainedModel, like: Row, rows: int, width: int, record: bool) -> Decoder:
        temperature = 0.0 if record else like.temperature
        captured = model.device.type == "cuda" and capturable(model)
        found = self.decoders.get((rows, width, record, temperature)) if captured else None
        if found is None:
            if self.storage is None or not self.storage.holds(like, rows, width):
                self.decoders.clear()
                self.storage = None  # given back before more is asked for
                self.storage = _Storage.of(like, rows, width)
            cache = self.storage.cache(model, like, rows, width)
            found = Decoder(model, cache, record, temperature, captured)
            if found.graph is not None:
                self.decoders[rows, width, record, temperature] = found
        return found


_pools: WeakKeyDictionary[PreTrainedModel, Pool] = WeakKeyDictionary()


def pool(model: PreTrainedModel) -> Pool:
    """What is kept on the device for a model: as long as it has the same modules, or until `forget`."""
    now, _ = blueprint(model)
    found = _pools.get(model)
    if found is None or found.drawn_for is not now:
        found = _pools[model] = Pool(now)
    return found


def held_bytes(model: PreTrainedModel) -> int:
    """Size of the storage that a model's rows are decoded on."""
    kept = _pools.get(model)
    if kept is None or kept.storage is None:
        return 0
    return tensor_bytes((*kept.storage.keys, *kept.storage.values))


def forget(model: PreTrainedModel) -> None:
    """Gives a model's storage for rows and its captured steps and passes back."""
    if _pools.pop(model, None) is not None:
        torch.cuda.empty_cache()


def decoder_for(model: PreTrainedModel, rows: Sequence[Row], new: int, record: bool) -> Decoder:
    like, count, width = rows[0], len(rows), max(row.width for row in rows) + new
    if model.device.type == "cuda":  # few shapes to capture
        count, width = rounded_up(count), -(-width // 64) * 64
    return pool(model).decoder(model, like, count, width, record)


def rounded_up(rows: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, …: few shapes to capture, at most a third of a batch idle."""
    step = 1 << max(0, (rows - 1).bit_length() - 2)
    return -(-rows // step) * step
