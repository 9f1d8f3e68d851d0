"""Large arrays in a file instead of in memory, such as the result of a photo of 100 megapixels.

The file has no name and ends with the array. Its pages are written through a mapping; let go of,
they are the system's to keep or to write to disk, and no longer count as the process's memory.
"""

from __future__ import annotations

import errno
import logging
import math
import mmap
import os
import tempfile

import numpy as np

from ldm_dream.data.image import ImageError
from ldm_dream.errors import shown

log = logging.getLogger(__name__)

IN_FILE_FROM = 2**28  # bytes of an array
_FOLDER = "/var/tmp"  # on a disk, where /tmp is often memory


def room(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of any content. Raises ImageError where the disk has no place for it."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < IN_FILE_FROM:
        return np.empty(shape, dtype)
    folder = _folder()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(
                    file.fileno(), 0, size
                )  # a mapping could not say that it is full
            else:
                file.truncate(size)
            return np.frombuffer(mmap.mmap(file.fileno(), size), dtype).reshape(shape)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.ENOENT):
            raise
        # apart from the sentence, which a page shows to people who know nothing of this machine
        log.warning(
            "%s: has no place for a result of %.1f GB (%s); set TMPDIR to a folder that has.",
            shown(folder), size / 1e9, error.strerror,
        )  # fmt: skip
        raise ImageError(
            f"the result takes {size / 1e9:.1f} GB, for which this machine has no place; "
            "ask for a smaller one."
        ) from None


def let_go(array: np.ndarray) -> None:
    """Of the pages that were touched, where the array lies in a file. What it holds stays."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        owner.madvise(mmap.MADV_DONTNEED)


def _folder() -> str:
    if "TMPDIR" in os.environ or not os.access(_FOLDER, os.W_OK):
        return tempfile.gettempdir()
    return _FOLDER
