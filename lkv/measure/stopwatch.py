"""Phases timed by CUDA events, or by the clock on a CPU."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lkv.eviction.decode import Clock
from lkv.interface import Adapter, Method, Tail

BOUND = 1e-2  # relative error of the scores, against the reference in float32, above which nothing is timed

Times: TypeAlias = dict[str, float]  # seconds


class Stopwatch:
    """Seconds per phase; time inside a nested phase counts for that one alone."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self._laps: list[tuple[str, Any, Any, int | None]] = []  # phase, start, end, the phase it is within
        self._open: list[int] = []

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        place = len(self._laps)
        self._laps.append((phase, self._now(), None, self._open[-1] if self._open else None))
        self._open.append(place)
        try:
            yield
        finally:
            self._open.pop()
            self._laps[place] = (*self._laps[place][:2], self._now(), self._laps[place][3])

    def laps(self) -> dict[str, list[float]]:
        """Every lap's seconds, less the laps within it, by phase; waits for the device."""
        if self.cuda:
            torch.cuda.synchronize()
        whole = [self._between(start, end) for _, start, end, _ in self._laps]
        own = list(whole)
        for seconds, (*_, within) in zip(whole, self._laps, strict=True):
            if within is not None:
                own[within] -= seconds
        found: dict[str, list[float]] = defaultdict(list)
        for seconds, (phase, *_) in zip(own, self._laps, strict=True):
            found[phase].append(seconds)
        return found

    def totals(self) -> Times:
        return defaultdict(float, {phase: sum(laps) for phase, laps in self.laps().items()})

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1000 if self.cuda else end - start


@dataclass(frozen=True)
class _Timed:
    """An adapter whose own products are a phase."""

    adapter: Adapter
    clock: Clock

    def add(
        self, model: PreTrainedModel, layer: int, names: Sequence[str], inputs: Tensor, outs: list[Tensor]
    ) -> list[Tensor]:
        with self.clock("lora"):
            return self.adapter.add(model, layer, names, inputs, outs)

    def hooked(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        return self.adapter.hooked(model)


def timed(method: Method | None, clock: Clock, ridden: list[int]) -> Method | None:
    """The method; rows of a tail in the prefill are noted, and the adapter's products are a phase."""
    if method is None or method.tail_before_prefill is None:
        return method
    known_before: Callable[..., Tail] = method.tail_before_prefill

    def with_clock(*given: Any) -> Tail:
        tail = known_before(*given)
        ridden.append(tail.rows)
        return tail if tail.adapter is None else replace(tail, adapter=_Timed(tail.adapter, clock))

    identity = method.identity or method.name
    return replace(method, tail_before_prefill=with_clock, identity=identity)
