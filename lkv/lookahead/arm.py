"""The schedule of a training, and the arm of the study that it trains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lkv.errors import UserError

TOKENS, RANK, ALPHA = 32, 8, 32  # of the paper: lookahead tokens; the LoRA's rank and alpha


def check_training(
    prompts: int,
    held_out: int,
    batch: int,
    steps: int = 0,
    warmup_steps: int = 0,
    places: tuple[str, str] = ("", "--warmup-steps: "),
) -> None:
    """Refuses a training that cannot fill a batch, or warms up for longer than it runs.

    `places`: where the number of prompts stands, and where the warm-up's steps.
    """
    if prompts - held_out < batch:
        raise UserError(
            f"{places[0]}{prompts} prompts less {held_out} held out do not fill a batch of {batch}; "
            f"give {held_out + batch} prompts or more, or a smaller batch"
        )
    if warmup_steps > steps:
        raise UserError(f"{places[1]}{warmup_steps} is more than the {steps} steps; give as many or fewer")


@dataclass(frozen=True)
class Schedule:
    """Adam with a linear warm-up and a cosine to zero, gradients clipped at norm 1.

    The paper's batch is 32, its rate 1e-3 (LLaMA) or 2e-4 (Qwen3); its schedule is not reported.
    """

    steps: int
    batch: int
    learning_rate: float
    warmup_steps: int
    held_out: int
    seed: int

    def rate(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Arm:
    """What is trained, beside data and schedule: how many tokens, what carries LoRA, by which loss, and from
    how many tokens of an answer at most.

    lora: all linears, q and k alone ("qk") or "none". The paper's: 32, all, KL (eq. 4). 32, none, MSE are the
    modules of Judge Q (AAAI 2026).
    """

    name: str = "main"
    tokens: int = TOKENS
    lora: str = "all"
    loss: str = "kl"
    response_tokens: int | None = None  # None: all that the data holds

    def taught(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """The prompt with as much of its response as this arm learns from."""
        return prompt | {"response": prompt["response"][: self.response_tokens]}

    def learned(self, tokens: int) -> int:
        """How many tokens of a response of so many it learns from."""
        return tokens if self.response_tokens is None else min(tokens, self.response_tokens)
