"""lkv: train, run and compare LookaheadKV and the eviction methods around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lkv.version import __version__

if TYPE_CHECKING:
    from lkv.lookahead.adapter import LookaheadKV

__all__ = ["LookaheadKV", "__version__"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `import lkv` (tables, plots, workflow helpers) does not pay for torch.
    if name == "LookaheadKV":
        from lkv.lookahead.adapter import LookaheadKV

        return LookaheadKV
    raise AttributeError(f"module 'lkv' has no attribute {name!r}")
