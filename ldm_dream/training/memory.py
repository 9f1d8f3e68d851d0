"""The most memory that a run has taken so far."""

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
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text() if status.exists() else "", re.M)
    return int(found[1]) / 2**20 if found else None
