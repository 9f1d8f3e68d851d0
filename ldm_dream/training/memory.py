"""The memory that a process takes, and the most that a run has taken so far."""

from __future__ import annotations

import re
from pathlib import Path

import torch


def peak_gib(device: torch.device) -> float | None:
    """Of a GPU what tensors held at once, of a CPU what this process held, without its workers; None
    where nothing tells.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = status_kib("VmHWM")
    return None if peak is None else peak / 2**20


def status_kib(name: str) -> int | None:
    """VmRSS, which is resident now, or VmHWM, the most so far, of this process alone (the mark of
    getrusage knows the parent's too); None where the system does not tell.
    """
    status = Path("/proc/self/status")
    found = re.search(rf"^{name}:\s+(\d+) kB", status.read_text() if status.exists() else "", re.M)
    return int(found[1]) if found else None
