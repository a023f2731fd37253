"""Which device a job runs on: each leases a GPU of its own, or a share of one, by file locks. CUDA graphs."""

from __future__ import annotations

import fcntl
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

import torch

from lkv.errors import UserError, one_of

_leases: list[IO[str]] = []  # open files: the locks live as long as the process
_share = 1  # of jobs that use this one's GPU


def pick(name: str, jobs: int = 1) -> torch.device:
    """auto, cpu or cuda → a device. On CUDA the first GPU that has room for one of `jobs` that share it."""
    global _share
    if name not in ("auto", "cpu", "cuda"):
        raise one_of("device", name, ["auto", "cpu", "cuda"])
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("device 'cuda' was asked for, but torch sees no GPU; use --device auto or cpu")
    for slot in range(jobs):
        for index in range(torch.cuda.device_count()):
            uuid = str(torch.cuda.get_device_properties(index).uuid)
            # A job alone shuts all others out; those that share take a place each.
            whole = _locked(uuid, fcntl.LOCK_EX if jobs == 1 else fcntl.LOCK_SH)
            place = whole and _locked(f"{uuid}-{slot}", fcntl.LOCK_EX)
            if whole and place:
                _leases.extend([whole, place])
                _share = jobs
                torch.cuda.set_device(index)
                return torch.device("cuda", index)
            if whole:
                whole.close()
    raise UserError(
        f"all {torch.cuda.device_count()} GPUs are leased by other lkv jobs; "
        "wait for them, or give snakemake --resources gpu=NUMBER_OF_GPUS (times jobs_per_gpu)"
    )


def _locked(name: str, kind: int) -> IO[str] | None:
    """A lock on a GPU, or on a place on it; None where another process holds it."""
    path = Path(tempfile.gettempdir()) / f"lkv-gpu-{name}.lock"
    if not path.exists():
        path.touch()
    lock = path.open()  # read-only: the file may be another user's
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock


Result = TypeVar("Result")


def capture(run: Callable[[], Result], pool: Any = None) -> tuple[torch.cuda.CUDAGraph, Result]:
    """A CUDA graph of `run`, and the tensors that its replays write. Runs it twice before, which compiles
    kernels and warms libraries up: a capture allows neither."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = run()
    return graph, result


def memory(device: torch.device) -> int:
    """Bytes that a job may count on: its share of the GPU's, or what the machine has free."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // _share
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").is_file() else []:
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return 8 << 30


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 operations a second by the vendor's data sheet; None where it is not known here."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}
    return next((rate for part, rate in known.items() if part in name), None)


def describe(device: torch.device) -> tuple[str, str | None]:
    """(name of the processor, CUDA driver or None) for provenance."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device), _driver()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []:
        if line.startswith("model name"):
            return f"CPU {line.split(':', 1)[1].strip()}, {torch.get_num_threads()} threads", None
    return f"CPU, {torch.get_num_threads()} threads", None


def _driver() -> str | None:
    version = Path("/proc/driver/nvidia/version")
    found = re.search(r"\d+(\.\d+)+", version.read_text()) if version.is_file() else None
    return found[0] if found else None
