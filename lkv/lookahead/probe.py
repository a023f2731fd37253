"""Whether a model's weights are those that an adapter was made for, by some of them from bottom to top.

A model stays what it is in another dtype, with rows appended to its embeddings (a padded or grown vocabulary)
and in 4 or 8 bit. What cannot be read of a quantised weight is left out of the comparison.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

VALUES = 8  # of each weight, evenly spread
RTOL, ATOL = 0.01, 1e-4  # of rounding to half precision
QUANTISED = 0.35  # of the values' norm; 4 bit is off by 0.1, other weights by 1.4
log = logging.getLogger("lkv")

Values = Sequence[float | None]


def dense(module: nn.Module) -> tuple[Tensor | None, bool]:
    """(a module's weight in floating point, whether it is quantised); None where no library reads it."""
    weight: Any = getattr(module, "weight", None)
    plain = type(weight) in (nn.Parameter, Tensor)
    if plain and weight.is_floating_point():
        return weight.detach(), False
    if plain and not hasattr(module, "dequantize"):
        return None, True
    try:
        if type(weight).__name__ in ("Params4bit", "Int8Params"):
            from transformers.integrations.bitsandbytes import dequantize_bnb_weight

            return dequantize_bnb_weight(weight, getattr(module, "state", None)).detach(), True
        reader: Any = module if hasattr(module, "dequantize") else weight
        found = reader.dequantize()
        return (found.detach() if found.is_floating_point() else None), True
    except (AttributeError, ImportError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return None, True


def values(modules: Sequence[nn.Module]) -> list[float | None]:
    """VALUES of each module's weight, rounded; None for each that cannot be read."""
    found: list[float | None] = []
    for weight, _ in map(dense, modules):
        found += [None] * VALUES if weight is None else [round(float(x), 6) for x in _spread(weight)]
    return found


def same(made_for: Values, table: nn.Module, keys: Sequence[nn.Module]) -> bool:
    """Whether `made_for` are the values of the embeddings `table` and the key projections `keys`."""
    parts = [made_for[at : at + VALUES] for at in range(0, len(made_for), VALUES)]
    modules = [table, *keys]
    if len(parts) != len(modules):
        return False
    compared = 0
    for part, module in zip(parts, modules, strict=True):
        weight, quantised = dense(module)
        if weight is None or None in part:
            continue
        compared += 1
        wanted = torch.tensor(part, device=weight.device)
        alike = _near if quantised else _rounded
        if not alike(_spread(weight), wanted) and not (module is table and _padded(weight, wanted)):
            return False
    if compared < len(modules):
        log.warning("%d of %d weights cannot be read to compare them", len(modules) - compared, len(modules))
    return compared > 0


def _spread(weight: Tensor) -> Tensor:
    return weight.flatten()[:: max(1, weight.numel() // VALUES)][:VALUES].float()


def _rounded(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and torch.allclose(found, wanted, RTOL, ATOL)


def _near(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and bool((found - wanted).norm() <= QUANTISED * wanted.norm())


def _padded(table: Tensor, wanted: Tensor) -> bool:
    """Whether the first so many rows of the table, however many, have these values."""
    rows, hidden = table.shape
    steps = (torch.arange(1, rows + 1, device=table.device) * hidden // VALUES).clamp(min=1)
    at = steps[:, None] * torch.arange(VALUES, device=table.device)
    if len(wanted) != VALUES or rows * hidden < VALUES:
        return False
    found = table.flatten()[at.clamp(max=table.numel() - 1)].float()
    return bool(torch.isclose(found, wanted, RTOL, ATOL).all(1).any())
