"""A training's checkpoint, to resume from."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import torch

from lkv.errors import UserError
from lkv.files.atomic import atomic_write
from lkv.lookahead.adapter import LookaheadKV


def save_checkpoint(
    path: Path, run: str, adapter: LookaheadKV, optimizer: torch.optim.Optimizer, rows: list[dict[str, Any]],
    seconds: float, before: float,
) -> None:  # fmt: skip
    state = {
        "run": run,
        "adapter": adapter.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rows": rows,
        "seconds": seconds,
        "before": before,
    }
    whole = io.BytesIO()  # a full disk shows as an OSError of the write, not as an error of torch's
    torch.save(state, whole)
    content = whole.getvalue()
    with atomic_write(path, "wb") as stream:
        stream.write(content + hashlib.sha256(content).digest())


def resume(
    path: Path, run: str, adapter: LookaheadKV, optimizer: torch.optim.Optimizer
) -> tuple[list[dict[str, Any]], float, float | None]:
    """(rows so far, seconds, held-out KL at the start) from a checkpoint of this very run, else nothing."""
    if not path.is_file():
        return [], 0.0, None
    content = path.read_bytes()
    content, digest = content[:-32], content[-32:]
    if hashlib.sha256(content).digest() != digest:
        raise UserError(f"{path} is damaged, or of an earlier lkv; delete it to start anew")
    try:
        state = torch.load(io.BytesIO(content), weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is not a checkpoint ({reason}); delete it to start anew") from None
    if state.get("run") != run:
        return [], 0.0, None
    adapter.load_state_dict(state["adapter"])
    optimizer.load_state_dict(state["optimizer"])
    return state["rows"], state["seconds"], state["before"]
