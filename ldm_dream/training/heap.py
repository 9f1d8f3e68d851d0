"""On a CPU, memory that a training step frees stays with the process, for the next step to use.

glibc gives large blocks back to the system at once, which then clears 200 MB of pages anew in each
step of a small SR3.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of malloc.h


def keep_freed_memory() -> bool:
    """For this process, from now on; call it before the first backward. -> whether the C library
    has such a switch (glibc).
    """
    mallopt = (
        getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    )
    if mallopt is None:
        return False
    # never trim, no block apart from the heap, one heap for all threads (man 3 mallopt); 1 = done
    return all(
        mallopt(name, value) == 1
        for name, value in ((M_TRIM_THRESHOLD, -1), (M_MMAP_MAX, 0), (M_ARENA_MAX, 1))
    )
