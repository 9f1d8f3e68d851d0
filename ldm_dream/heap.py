"""What happens to memory that the process frees: kept for the next use, or given back at once.

What is given back costs time when it is wanted again, as the system clears each page anew: 200 MB in
each training step of a small SR3. What is kept leaves holes in the heap where bands of a large picture
were. Both functions set all that they depend on: of several calls the last one counts.
"""

from __future__ import annotations

import ctypes
import sys

# of malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8
DEFAULT_MMAP_MAX = 2**16  # blocks
# bytes
BIG_BLOCK = 2**25  # the most that glibc takes, on 64 bits
KEPT = 2**28


def keep_freed_memory() -> bool:
    """For this process, from now on; call it before the first backward. -> whether the C library
    has such a switch (glibc).
    """
    # never trim, no block apart from the heap, one heap for all threads
    return _set({M_TRIM_THRESHOLD: -1, M_MMAP_MAX: 0, M_ARENA_MAX: 1})


def keep_small_blocks() -> bool:
    """For this process, from now on: a block of BIG_BLOCK bytes or more lies apart from the heap and
    goes back at once, unless the heap has a hole for it; up to KEPT free bytes at the heap's end stay.
    So features of a tile stay, and bands of a large picture go. -> as above.
    """
    return _set({M_MMAP_MAX: DEFAULT_MMAP_MAX, M_MMAP_THRESHOLD: BIG_BLOCK, M_TRIM_THRESHOLD: KEPT})


def _set(options: dict[int, int]) -> bool:
    mallopt = (
        getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    )
    # man 3 mallopt; 1 = done
    return mallopt is not None and all(mallopt(*option) == 1 for option in options.items())
