"""The processes of one run, started by torchrun; without it one process, for which everything here
changes nothing.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class Rank(NamedTuple):
    """Which process this is, of how many, on which device. Only the first one writes files and
    lines.
    """

    number: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.number == 0


@contextmanager
def start() -> Iterator[Rank]:
    """Joins the processes that torchrun has started, each on a CUDA device of its own (NCCL), or on
    the CPU (gloo).
    """
    cuda = torch.cuda.is_available()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Rank(0, 1, torch.device("cuda" if cuda else "cpu"))
        return
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Rank(dist.get_rank(), dist.get_world_size(), device)
        dist.barrier()  # nobody leaves while the first one still writes
    finally:
        gc.collect()  # the wrappers of `share_gradients` go before what they talk through
        dist.destroy_process_group()


def share_gradients(module: nn.Module, some_unused: bool = False) -> nn.Module:
    """`module`, whose gradients become the mean over all processes in backward. some_unused: a step
    may leave parameters out.
    """
    if not dist.is_initialized():
        return module
    # the successor of broadcast_buffers is not in all supported versions of torch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            module,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=some_unused,
        )


def mean(x: Tensor) -> Tensor:
    """Over all processes."""
    if not dist.is_initialized():
        return x
    x = x.detach().float().clone()
    dist.all_reduce(x)
    return x / dist.get_world_size()


def anywhere(mask: Tensor) -> Tensor:
    """bool -> bool: true where it is true in any process."""
    if not dist.is_initialized():
        return mask
    count = mask.int()
    dist.all_reduce(count)
    return count > 0


def of_first(x: Tensor) -> Tensor:
    """In place: every process gets the values of the first one."""
    if dist.is_initialized():
        dist.broadcast(x, 0)
    return x
