"""What is minimised: the distance between what the answer looks at and what the lookahead tokens predict.

No activation of the prompt depends on a trainable parameter, so one prefill without gradient serves both: the
answer's pass gives the target (eq. 1), the lookahead tokens' pass the prediction (eq. 2-3), and the gradient
runs through the n lookahead rows alone. Its equality with autograd through the whole sequence is a test. On
CUDA that pass, forward and backward, is captured once a shape and replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lkv.cache.sizes import stored_bytes
from lkv.eviction.answer import answer_tail
from lkv.eviction.importance import kl_divergence
from lkv.eviction.prefill import observe_tail, prefill
from lkv.eviction.prefilled import Prefilled
from lkv.interface import Importance, Tail
from lkv.lookahead.adapter import LookaheadKV
from lkv.model.cuda_graph import capture
from lkv.model.load import Loaded

ANSWER_STEP = 32  # captured answers are padded to a multiple


class Loss(NamedTuple):
    """What is minimised, and the KL that every arm is compared by; the same where that is minimised."""

    loss: Tensor
    kl: Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts of one length after all that no trainable parameter touches: their cache and target."""

    prefilled: Prefilled
    target: Importance

    @property
    def bytes(self) -> int:
        return stored_bytes(self.prefilled.cache) + sum(t.numel() * 4 for t in self.target)


def prepare(loaded: Loaded, prompts: Sequence[dict[str, Any]]) -> Batch:
    """Prefill and target importance of prompts of one length, from their stored responses."""
    ids = torch.tensor([prompt["ids"] for prompt in prompts], device=loaded.model.device)
    prefilled, _ = prefill(loaded.model, ids)
    prefilled.answers = [prompt["response"] for prompt in prompts]
    with torch.no_grad():
        return Batch(prefilled, observe_tail(prefilled, answer_tail(prefilled)))


def batch_loss(adapter: LookaheadKV, batch: Batch, by: str = "kl") -> Loss:
    """Means over layers, query heads and prompts: scalars. The KL(target ‖ prediction) is in nats.

    `by` "mse" minimises the squared difference, summed over a prompt's keys: their mean, which Judge Q takes,
    is smaller by a factor N, and with it the gradient, which Adam divides out, but for its epsilon.
    """
    prediction = observe_tail(batch.prefilled, adapter.tail(batch.prefilled.ids.shape[0]))
    pairs = list(zip(batch.target, prediction, strict=True))
    if by == "kl":
        kl = torch.stack([kl_divergence(t, p).mean() for t, p in pairs]).mean()
        return Loss(kl, kl.detach())
    with torch.no_grad():
        kl = torch.stack([kl_divergence(t, p).mean() for t, p in pairs]).mean()
    return Loss(torch.stack([(t - p).square().sum(-1).mean() for t, p in pairs]).mean(), kl)


class Captured:
    """On CUDA: a batch's prefill, target, prediction and gradients in one replay, captured once a shape.

    A step is some thousands of launches, which would take longer than the work that they start.
    """

    def __init__(self, loaded: Loaded, adapter: LookaheadKV, by: str = "kl") -> None:
        self.loaded, self.adapter, self.by = loaded, adapter, by
        self.pool = torch.cuda.graph_pool_handle()
        self.shapes: dict[tuple[int, int, int], _CapturedShape] = {}

    def __call__(self, prompts: Sequence[dict[str, Any]], weight: float) -> Tensor:
        """Adds the gradients of prompts of one length; returns their KL times `weight`, a scalar."""
        longest = max(len(prompt["response"]) for prompt in prompts)
        shape = len(prompts), len(prompts[0]["ids"]), -(-longest // ANSWER_STEP) * ANSWER_STEP
        if shape not in self.shapes:
            given = (self.loaded, self.adapter, self.by, shape, prompts, self.pool)
            self.shapes[shape] = _CapturedShape(*given)
        return self.shapes[shape](prompts, weight)


class _CapturedShape:
    def __init__(
        self,
        loaded: Loaded,
        adapter: LookaheadKV,
        by: str,
        shape: tuple[int, int, int],
        prompts: Sequence[dict[str, Any]],
        pool: Any,
    ) -> None:
        self.model, self.adapter, self.by = loaded.model, adapter, by
        batch, length, answer = shape
        self.ids = torch.zeros(batch, length, dtype=torch.long, device=self.model.device)
        self.answers = torch.zeros(batch, answer, dtype=torch.long, device=self.model.device)
        self.valid = torch.zeros(batch, answer, dtype=torch.bool, device=self.model.device)
        self.weight = torch.ones([], device=self.model.device)
        self._fill(prompts, 0.0)
        before = [gradient(parameter).clone() for parameter in adapter.parameters()]
        self.graph, self.kl = capture(self._run, pool)
        for parameter, grad in zip(adapter.parameters(), before, strict=True):
            gradient(parameter).copy_(grad)

    def _fill(self, prompts: Sequence[dict[str, Any]], weight: float) -> None:
        longest = self.answers.shape[1]
        padded = [[*prompt["response"], *[0] * (longest - len(prompt["response"]))] for prompt in prompts]
        written = torch.tensor([len(prompt["response"]) for prompt in prompts])
        self.ids.copy_(torch.tensor([prompt["ids"] for prompt in prompts]), non_blocking=True)
        self.answers.copy_(torch.tensor(padded), non_blocking=True)
        self.valid.copy_(torch.arange(longest) < written[:, None], non_blocking=True)
        self.weight.fill_(weight)

    def _run(self) -> Tensor:
        with torch.no_grad():
            prefilled, _ = prefill(self.model, self.ids)
            target = observe_tail(prefilled, Tail(self.answers, valid=self.valid))
        loss, kl = batch_loss(self.adapter, Batch(prefilled, target), self.by)
        (loss * self.weight).backward()
        return kl * self.weight

    def __call__(self, prompts: Sequence[dict[str, Any]], weight: float) -> Tensor:
        self._fill(prompts, weight)
        self.graph.replay()
        return self.kl.clone()


def gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:  # a process without a prompt in this step
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
