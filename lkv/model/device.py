"""What a device is: its memory, its peak rate, its name and driver."""

from __future__ import annotations

import re
from pathlib import Path

import torch

_jobs = 1  # that share this one's GPU


def share_gpu(jobs: int) -> None:
    """From here on `memory` counts with one part of `jobs`."""
    global _jobs
    _jobs = jobs


def memory(device: torch.device) -> int:
    """Bytes that a job may count on: its share of the GPU's, or what the machine has free."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // _jobs
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
