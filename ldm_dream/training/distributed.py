"""The processes of one run, started by torchrun; without it one process, for which everything here
changes nothing.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, NamedTuple

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
    # gloo beside NCCL: what processes agree on in main memory does not wait for the device
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        with watched(dist.get_rank(), dist.get_world_size()):
            yield Rank(dist.get_rank(), dist.get_world_size(), device)
            dist.barrier()  # nobody leaves while the first one still writes
    finally:
        gc.collect()  # the wrappers of `share_gradients` go before what they talk through
        dist.destroy_process_group()


BEAT = 2.0  # seconds between two signs of life of a process
SILENCE = 30.0  # seconds without one, after which a process counts as lost


@contextmanager
def watched(number: int, world: int) -> Iterator[None]:
    """In the body a process that is stopped or cut off ends the others too, by one line and exit
    status 1; without this they would wait in a collective call for half an hour.

    Every process counts up a number of its own in the store that torchrun keeps, and looks at those
    of the others.
    """
    store = dist.TCPStore(  # type: ignore  # documented, but not in __all__
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False,
        timeout=timedelta(seconds=SILENCE),
    )  # fmt: skip
    done = threading.Event()

    def watch() -> None:
        seen: dict[int, tuple[int, float]] = dict.fromkeys(range(world), (0, time.monotonic()))
        while not done.wait(BEAT):
            try:
                store.add(f"alive/{number}", 1)
                beats = {other: store.add(f"alive/{other}", 0) for other in seen}
            except (RuntimeError, ConnectionError):  # the store went with its process
                if done.is_set():
                    return
                _leave("the store of torchrun", number)
            now = time.monotonic()
            for other, beat in beats.items():
                if beat != seen[other][0]:
                    seen[other] = (beat, now)
                elif now - seen[other][1] >= SILENCE:
                    _leave(f"process {other}", number)

    thread = threading.Thread(target=watch, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _leave(lost: str, number: int) -> None:
    sys.stderr.write(
        f"error: {lost} gave no sign for {SILENCE:.0f} s, so process {number} ends too; "
        "the same command goes on from the last checkpoint.\n"
    )
    sys.stderr.flush()
    os._exit(1)


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


def gathered(x: Any) -> list[Any]:
    """What each process brings, in their order."""
    if not dist.is_initialized():
        return [x]
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, x)
    return found


def of_first_object(x: Any) -> Any:
    """What the first process brings, in every process."""
    if not dist.is_initialized():
        return x
    box = [x]
    dist.broadcast_object_list(box, 0)
    return box[0]


def apart(module: nn.Module) -> AbstractContextManager[None]:
    """A backward in the body keeps its gradients to this process; a later one brings all of them
    together.
    """
    if isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return nullcontext()


def anywhere(mask: Tensor) -> Tensor:
    """bool -> bool: true where it is true in any process."""
    if not dist.is_initialized():
        return mask
    count = mask.int()
    dist.all_reduce(count)
    return count > 0


def wait() -> None:
    """Until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def of_first(x: Tensor) -> Tensor:
    """In place: every process gets the values of the first one."""
    if dist.is_initialized():
        dist.broadcast(x, 0)
    return x
