"""Which pictures of validation are trained on too: the same files, and copies by the same name."""

from __future__ import annotations

import functools
import hashlib
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from ldm_dream.data.images import ImageError
from ldm_dream.data.listing import BYTES
from ldm_dream.data.sources import Files

ROWS = 8  # of pixels, at the top and in the middle, by which copies of two kinds are known
MANY = 8  # training pictures of one name, from which the name tells too little to look at pixels


def overlap(train: Files, val: Files) -> int:
    """How many pictures of `val` are in `train` too, by place or as a copy.

    A copy has the same name without folders and suffix, and the same bytes; or, where fewer than MANY
    training pictures have that name, the same size in pixels and the same rows of pixels, whether in
    a file or an LMDB. What cannot be read is none.
    """
    files, names = set(train.identities()), defaultdict(list)
    for i in range(len(train)):
        names[train.name(i)].append(i)
    digest = functools.cache(lambda i: _digest(train, i))

    def is_in_train(i: int) -> bool:
        alike = names.get(val.name(i), [])
        same_bytes = [j for j in alike if train.stats[j, BYTES] == val.stats[i, BYTES]]
        if same_bytes and (mine := _digest(val, i)) and any(digest(j) == mine for j in same_bytes):
            return True
        return len(alike) < MANY and any(_looks_equal(train, j, val, i) for j in alike)

    return sum(file in files or is_in_train(i) for i, file in enumerate(val.identities()))


def _digest(files: Files, index: int) -> bytes | None:
    """None where it cannot be read."""
    try:
        content = files.content(index)
        content = Path(files.path(index)).read_bytes() if content is None else content
    except (ImageError, OSError):
        return None
    return hashlib.sha256(content).digest()


def _looks_equal(one: Files, i: int, other: Files, j: int) -> bool:
    try:
        if (size := one.size(i)) != other.size(j):
            return False
        return all(
            torch.equal(_rows(one, i, top, size), _rows(other, j, top, size))
            for top in (0, size[0] // 2)
        )
    except ImageError:
        return False


def _rows(files: Files, index: int, top: int, size: tuple[int, int]) -> Tensor:
    rows, columns = slice(top, min(top + ROWS, size[0])), slice(0, size[1])
    found = files.window(index, rows, columns)
    return files.read(index)[:, rows] if found is None else found
