"""Memory that processes share, and how much of it a process may use, by what the kernel and its
control groups say.

An area of shared memory belongs to no file, so that the size of /dev/shm, 64 MiB in most containers,
does not limit it. The kernel gives it pages as they are filled and takes them back with the last
process that holds it.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Callable, Iterator
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_dream.data.machine import processes

log = logging.getLogger(__name__)

GIB = 2**30
SHARE = 4  # by default pictures are kept in a quarter of the memory that is free
MOST = 0.9  # of it, where more is asked for than is there


def new_area(size: int) -> int:
    """File descriptor of `size` zero bytes, at least one."""
    area = os.memfd_create("ldm_dream")
    os.ftruncate(area, size)
    return area


def mapped(area: int, size: int) -> Tensor:
    """uint8 [size]: the bytes themselves, which stay when the descriptor is closed. Raises OSError."""
    return torch.frombuffer(mmap.mmap(area, size), dtype=torch.uint8)


def handed_over(tensor: Tensor) -> tuple[Callable, tuple]:
    """How to pickle a tensor for another process of this machine: it gets an area that holds it."""
    size = tensor.numel() * tensor.element_size()
    area = new_area(size)
    try:
        found = mapped(area, size).view(tensor.dtype).view(tensor.shape)
        found.copy_(tensor)
        return _taken, (DupFd(area), size, tensor.dtype, tensor.shape)
    finally:
        os.close(area)


def _taken(handle: Any, size: int, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    area = handle.detach()
    try:
        return mapped(area, size).view(dtype).view(shape)
    finally:
        os.close(area)


def room_for_pictures(gib: float | None) -> int:
    """Bytes in which one training process of a machine keeps pictures. gib: for all of them
    together; None: a share of what is free. More than is free is cut to that, and said.
    """
    free = available()
    room = free // SHARE if gib is None else int(gib * GIB)
    if room > free:
        room = int(free * MOST)
        log.warning(
            "data.keep_gib=%g: %.1f GiB of memory are free here; pictures are kept in %.1f GiB.",
            gib, free / GIB, room / GIB,
        )  # fmt: skip
    return room // processes()


def available(root: Path = Path("/")) -> int:
    """Bytes free on this machine, or left to the control group where that is less. What a file's
    cache holds counts as free.
    """
    lines = (root / "proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return max(0, min([free, *_left_to_groups(root)]))


def _left_to_groups(root: Path) -> Iterator[int]:
    """Of this process's control group and each one above it that has a limit; versions 2 and 1."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        top = root / "sys/fs/cgroup" / kinds
        limit, used, cache = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if kinds
            else ("memory.max", "memory.current", "inactive_file")
        )
        own = top / path.lstrip("/")
        for group in (own, *own.parents):
            if _text(group / limit).strip().isdigit():  # not "max"
                left = int(_text(group / limit)) - int(_text(group / used) or 0)
                stat = dict(line.split() for line in _text(group / "memory.stat").splitlines())
                yield left + int(stat.get(cache, 0))
            if group == top:
                break


def _text(path: Path) -> str:
    """Of a file of the kernel; "" where this kernel or container has none."""
    try:
        return path.read_text()
    except OSError:
        return ""
