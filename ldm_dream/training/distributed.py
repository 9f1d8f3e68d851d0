"""The processes of one run, started by torchrun; without it one process, for which everything here
changes nothing.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore  # not in its __all__
from torch.nn.parallel import DistributedDataParallel

from ldm_dream.errors import UserError


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


class ProcessesError(UserError, RuntimeError):
    """Processes that cannot train together; its text is complete for the user."""


# A collective call that takes longer ends the run. Lost processes are found in SILENCE, so this is
# only for one that lives and does not get there: the first step compiles, a validation is shared.
LONGEST_WAIT = timedelta(hours=1)
MEET = timedelta(minutes=5)  # from the first process that is there to the last one
BEAT = 2.0  # seconds between two signs of life of a process
SILENCE = 30.0  # seconds without one, after which a process counts as lost


@contextmanager
def start() -> Iterator[Rank]:
    """Joins the processes that torchrun has started, each on a CUDA device of its own (NCCL), or on
    the CPU (gloo). Raises ProcessesError.
    """
    cuda = torch.cuda.is_available()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Rank(0, 1, torch.device("cuda" if cuda else "cpu"))
        return
    number, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if number:  # what is to be said of pictures and files is the same in all
        logging.getLogger("ldm_dream").setLevel(logging.ERROR)
    device = _own_gpu() if cuda else torch.device("cpu")
    store = _meet(number, world)
    # gloo beside NCCL: what processes agree on in main memory does not wait for the device
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=store, rank=number, world_size=world, timeout=LONGEST_WAIT,
    )  # fmt: skip
    with watched(store, number, world):
        try:
            yield Rank(number, world, device)
            dist.barrier()  # nobody leaves while the first one still writes
        finally:
            gc.collect()  # the wrappers of `share_gradients` go before what they talk through
            dist.destroy_process_group()
    if not _torchrun_keeps_store():
        _leave_in_order(store, number, world)


def _own_gpu() -> torch.device:
    local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= there:
        raise ProcessesError(
            f"{socket.gethostname()} has {there} GPUs and torchrun started more processes on it; "
            f"give --nproc-per-node {there} or less."
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


# ------------------------------------------------------------------------------- finding each other


def _torchrun_keeps_store() -> bool:
    """Else process 0 does."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _meet(number: int, world: int) -> Store:
    """-> a part of the store that all processes reach, which is new and theirs alone.

    torchrun keeps its store when it starts the processes again, with the addresses of those before
    in it, and none of the numbers that it tells is another one in each round and the same on all
    machines (a machine counts its own restarts only). So the first process names the part, and tells
    the name to each who asks by a word that nobody has used before. Raises ProcessesError.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = number == 0 and not _torchrun_keeps_store()
    try:
        store = TCPStore(host, port, is_master=serves, wait_for_workers=False, timeout=MEET)
        name = _name_for_all(store, world) if number == 0 else _name_from_first(store, number)
    except (RuntimeError, TimeoutError) as error:  # torch has many kinds
        raise ProcessesError(
            f"process {number} did not meet all {world} at {host}:{port} "
            f"({str(error).partition(chr(10))[0]}); that name must lead to the machine of process 0 "
            "from every other one: give torchrun there an address that does by --local-addr."
        ) from None
    store.set_timeout(LONGEST_WAIT)
    return PrefixStore(name, store)


def _name_for_all(store: Store, world: int) -> str:
    name, until = uuid.uuid4().hex, time.monotonic() + MEET.total_seconds()
    while store.add(f"{name}/met", 0) < world - 1:
        if time.monotonic() > until:
            raise TimeoutError(f"{store.add(f'{name}/met', 0) + 1} came")
        for other in range(1, world):
            if store.check([f"ask/{other}"]):
                store.set(f"answer/{store.get(f'ask/{other}').decode()}", name)
        time.sleep(0.05)
    return name


def _name_from_first(store: Store, number: int) -> str:
    word = uuid.uuid4().hex
    store.set(f"ask/{number}", word)
    name = store.get(f"answer/{word}").decode()
    store.add(f"{name}/met", 1)
    return name


def _leave_in_order(store: Store, number: int, world: int) -> None:
    """The one that keeps the store leaves last, for the others still look into it."""
    until = time.monotonic() + SILENCE
    left = store.add("left", 1)
    while number == 0 and left < world and time.monotonic() < until:
        time.sleep(0.02)
        left = store.add("left", 0)


# ------------------------------------------------------------------------------------ staying alive


@contextmanager
def watched(store: Store, number: int, world: int) -> Iterator[None]:
    """In the body a process that is stopped or cut off ends the others too, by one line and exit
    status 1; without this they would wait in a collective call for LONGEST_WAIT.

    Every process counts up a number of its own in `store`, and looks at those of the others. It does
    so by a connection of its own: one that waits for an answer lets nobody else ask.
    """
    store = store.clone()
    store.set_timeout(timedelta(seconds=SILENCE))
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
                _leave("the store of the processes", number)
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


# --------------------------------------------------------------------------------- working together


def batch_of_a_step(batch_size: int, micro_batches: int, world: int) -> str:
    """How many samples a step sees, for the log: `train.batch_size` is not all of them."""
    parts = f"{micro_batches} micro-batch{'es' if micro_batches > 1 else ''} of {batch_size}"
    shared = f", shared by {world} processes" if world > 1 else ""
    return f"batch: {batch_size * micro_batches} samples a step ({parts}{shared})"


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
    x = x.detach().clone()
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
