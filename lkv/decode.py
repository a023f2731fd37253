"""Decoding of many rows as one batch, each from its own kept entries and position.

Rows = samples × methods × budgets; shapes are fixed and rows fill slots of their own, so that on CUDA a step
is captured once a shape and replayed. Storage is shared by all shapes of a model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lkv.architecture import Blueprint, blueprint, capturable
from lkv.attention import Pass, require_observable
from lkv.cache import Layers, Row, RowsCache, prompt_cache, tensor_bytes, windows
from lkv.device import capture
from lkv.errors import UserError
from lkv.forward import logits, states
from lkv.rope import length_dependent
from lkv.sampling import drawn

if TYPE_CHECKING:
    from lkv.interface import Adapter
    from lkv.second import SecondPass

log = logging.getLogger("lkv")

Clock: TypeAlias = Callable[[str], AbstractContextManager[None]]
Done: TypeAlias = Callable[[int, "list[int]"], None]  # (row, its tokens)
LOOK_EVERY = 8  # steps on CUDA between two looks at whether rows are done: a look waits for the device


def no_clock(_: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass
class Decoded:
    """Tokens of each row without the stop token; queries [R, H, T, D] a layer where recorded, and by what
    their products with keys are scaled there."""

    tokens: list[list[int]]
    queries: list[Tensor]
    steps: int
    scalings: Sequence[float] = ()


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

        def remember(layer: int, query: Tensor, key: Tensor, scaling: float, lse: Tensor | None) -> None:
            seen.append(query)
            scalings.append(scaling)

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

    `tails` are second passes by adapter and by rows, how these are put together, and width.
    """

    def __init__(self, drawn_for: Blueprint) -> None:
        self.drawn_for = drawn_for
        self.storage: _Storage | None = None
        self.decoders: dict[tuple[int, int, bool, float], Decoder] = {}
        self.tails: WeakKeyDictionary[Adapter, dict[tuple[int, str, int], SecondPass]] = WeakKeyDictionary()

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


def _decoder(model: PreTrainedModel, rows: Sequence[Row], new: int, record: bool) -> Decoder:
    like, count, width = rows[0], len(rows), max(row.width for row in rows) + new
    if model.device.type == "cuda":  # few shapes to capture
        count, width = rounded_up(count), -(-width // 64) * 64
    return pool(model).decoder(model, like, count, width, record)


def rounded_up(rows: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, …: few shapes to capture, at most a third of a batch idle."""
    step = 1 << max(0, (rows - 1).bit_length() - 2)
    return -(-rows // step) * step


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    rows: Sequence[Row],
    new_tokens: int,
    stop: frozenset[int] = frozenset(),
    record: bool = False,
    clock: Clock = no_clock,
    done: Done = lambda r, tokens: None,
) -> Decoded:
    """Decoding of all rows as one batch, at the temperature that they share. Once half of them have ended,
    the others go on without them. `done` is told of each row when it has ended.

    `record` also feeds each row's last token, so that every draft token leaves a query; drafts are greedy.
    """
    require_observable(model)
    fed = new_tokens if record else new_tokens - 1
    decoder = _decoder(model, rows, max(fed, 1), record)
    decoder.load(rows)
    stops = torch.tensor(sorted(stop), dtype=torch.long, device=model.device)
    look_every = LOOK_EVERY if model.device.type == "cuda" else 1
    tokens, queries = [decoder.token.clone()], list[Tensor]()
    ended = torch.isin(tokens[0][: len(rows), 0], stops)
    said: set[int] = set()
    while len(tokens) <= fed:
        if stop and (len(tokens) - 1) % look_every == 0:
            going = [r for r, over in enumerate(ended.tolist()) if not over]
            if len(rows) - len(going) > len(said):
                so_far = torch.cat(tokens, 1)[: len(rows)].tolist()
                for r in sorted(set(range(len(rows))) - set(going) - said):
                    done(r, _until(so_far[r][:new_tokens], stop))
                    said.add(r)
            if not going and not (record and len(tokens) == 1):
                break
            if not record and len(going) <= len(rows) // 2 and len(tokens) > 1:
                return _without_the_ended(model, rows, decoder, tokens, going, new_tokens, stop, clock, done)
        with clock("decode_token"):
            decoder.step()
        tokens.append(decoder.token.clone())
        if stop:
            ended |= torch.isin(decoder.token[: len(rows), 0], stops)
        if decoder.queries is not None:
            queries.append(decoder.queries.clone())
    table = torch.cat(tokens, 1)[: len(rows), :new_tokens].tolist()
    seen = list(torch.cat(queries, 3)[:, : len(rows)]) if queries else []
    answers = [_until(row, stop) for row in table]
    for r in sorted(set(range(len(rows))) - said):
        done(r, answers[r])
    return Decoded(answers, seen, len(tokens) - 1, decoder.scalings)


def _without_the_ended(
    model: PreTrainedModel,
    rows: Sequence[Row],
    decoder: Decoder,
    before: Sequence[Tensor],
    going: Sequence[int],
    new_tokens: int,
    stop: frozenset[int],
    clock: Clock,
    done: Done,
) -> Decoded:
    """The rows `going` decoded to the end in a smaller batch; the others have their answers in `before`."""
    fed = len(before) - 1
    left = [decoder.cache.row(r, rows[r], fed, decoder.token[r, 0].clone()) for r in going]
    table = torch.cat(list(before), 1)[: len(rows)].tolist()

    def of_all(r: int, tokens: list[int]) -> None:
        done(going[r], table[going[r]][:-1] + tokens)

    rest = decode(model, left, new_tokens - fed, stop, clock=clock, done=of_all)
    for r, tokens in zip(going, rest.tokens, strict=True):
        table[r] = table[r][:-1] + tokens
    return Decoded([_until(row, stop) for row in table], [], fed + rest.steps)


def decode_all(
    model: PreTrainedModel,
    rows: Sequence[Row],
    new_tokens: int,
    stop: frozenset[int],
    at_once: int,
    done: Done = lambda r, tokens: None,
) -> list[list[int]]:
    """Decodes rows in batches of at most `at_once`, like widths together; halves the batch when CUDA runs out
    of memory. `done(r, tokens)` is told of each row as soon as it has ended."""
    answers: dict[int, list[int]] = {}

    def told(places: Sequence[int]) -> Done:
        def note(r: int, tokens: list[int]) -> None:
            answers[places[r]] = tokens
            done(places[r], tokens)

        return note

    left = sorted(range(len(rows)), key=lambda r: rows[r].width)
    while left:
        batch = left[:at_once]
        if length_dependent(model):  # rows of unequal positions would change each other's rotation
            batch = [r for r in batch if rows[r].position == rows[batch[0]].position]
        try:
            decode(model, [rows[r] for r in batch], new_tokens, stop, done=told(batch))
        except torch.OutOfMemoryError:
            if at_once == 1:
                raise UserError(
                    "CUDA ran out of memory while decoding a single row; use a GPU with more memory, "
                    "a smaller model or a shorter length"
                ) from None
            at_once = max(1, min(at_once, len(rows)) // 2)
            log.warning("out of memory: decoding %d rows at once from here on", at_once)
            forget(model)
            torch.cuda.empty_cache()
        left = [r for r in left if r not in answers]
    return [answers[r] for r in range(len(rows))]


def _until(tokens: list[int], stop: frozenset[int]) -> list[int]:
    for i, token in enumerate(tokens):
        if token in stop:
            return tokens[:i]
    return tokens
