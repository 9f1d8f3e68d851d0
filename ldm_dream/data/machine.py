"""What of this machine one training process has: torchrun tells how many share it."""

from __future__ import annotations

import os


def processes() -> int:
    """Of this run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def cores() -> int:
    """For each of them, of those that this process may run on; 0 where they are more than the cores."""
    return len(os.sched_getaffinity(0)) // processes()
