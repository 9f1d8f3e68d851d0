"""What happens to memory that the process frees: kept for the next step, or given back at once.

glibc gives large blocks back to the system, which then clears 200 MB of pages anew in each training
step of a small SR3. Which blocks are large it learns as it goes, up to 32 MB: so holes stay in the
heap where bands of a large picture were.
"""

from __future__ import annotations

import ctypes
import sys

# of malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8
BIG_BLOCK = 2**22  # bytes


def keep_freed_memory() -> bool:
    """For this process, from now on; call it before the first backward. -> whether the C library
    has such a switch (glibc).
    """
    # never trim, no block apart from the heap, one heap for all threads
    return _set({M_TRIM_THRESHOLD: -1, M_MMAP_MAX: 0, M_ARENA_MAX: 1})


def give_back_freed_memory() -> bool:
    """For this process, from now on: blocks of BIG_BLOCK bytes lie apart from the heap. -> as above."""
    return _set({M_MMAP_THRESHOLD: BIG_BLOCK})


def _set(options: dict[int, int]) -> bool:
    mallopt = (
        getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    )
    # man 3 mallopt; 1 = done
    return mallopt is not None and all(mallopt(*option) == 1 for option in options.items())
