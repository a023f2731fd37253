"""Drawing tokens at a temperature, by noise that a row's seed and the token's place decide.

argmax(logits / T + Gumbel noise) is a draw from softmax(logits / T). The noise depends on nothing else, so a
resumed run, another batch or another device draw alike, and all methods answer a sample with the same noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

# splitmix64's mixing constants, as signed 64-bit numbers; torch's products wrap around.
SEED, PLACE, TOKEN = -7046029254386353131, -4658895280553007687, -7723592293110705685
MIX = ((30, -4658895280553007687), (27, -7723592293110705685), (31, 1))


def drawn(logits: Tensor, temperature: float, seeds: Tensor, positions: Tensor) -> Tensor:
    """The next token of each row, int64 [R]; the likeliest at temperature 0.

    logits [R, V], seeds and positions int64 [R]. A position is that of the last token that was read.
    """
    if temperature == 0:
        return logits.argmax(-1)
    return (logits.float() / temperature + gumbel(seeds, positions, logits.shape[-1])).argmax(-1)


def gumbel(seeds: Tensor, positions: Tensor, vocabulary: int) -> Tensor:
    """Standard Gumbel noise, float32 [R, V], a function of (seed, position, token) alone."""
    tokens = torch.arange(vocabulary, device=seeds.device)
    bits = (_mixed(_mixed(seeds * SEED) + positions * PLACE)[:, None]) + tokens * TOKEN
    uniform = (((_mixed(bits) >> 40) & 0xFFFFFF).float() + 0.5) / (1 << 24)
    return -torch.log(-torch.log(uniform))


def _mixed(bits: Tensor) -> Tensor:
    for shift, factor in MIX:
        bits = (bits ^ ((bits >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return bits
