"""The batches of a run, in their order, loaded ahead by worker processes.

A batch is a pure function of its number, so nothing but time depends on how many workers there are.
Workers start from a server process that has imported this file and does nothing else: a copy of this
process would carry the threads of libvips and of a GPU with it, and neither survives that.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any, Protocol

import pyvips
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm_dream.data.machine import cores
from ldm_dream.data.memory import handed_over
from ldm_dream.data.pairs import Batch
from ldm_dream.errors import UserError

# what the first process of a run is told by the terminal or a scheduler; it tells the workers
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
NICE = 5  # of a worker: it gives way to the threads that train


class LoaderError(UserError, RuntimeError):
    """A process that loads data is gone; its text is complete for the user."""


class Data(Protocol):
    """Training samples; `len` counts pictures."""

    def __len__(self) -> int: ...

    def request(self, number: int, batch_size: int) -> Any:
        """What to load for batch `number`; called in the main process in the order of use."""
        ...

    def load(self, request: Any) -> Any:
        """Read and cut it, in any process: a function of the request alone."""
        ...

    def finish(self, samples: Any, place: Callable[[Tensor], Tensor]) -> Batch:
        """In the main process, in the order of the requests. place: moves a tensor to the device."""
        ...


class Loader:
    """Iterator of the batches of `numbers`. `waited`: seconds for which it kept its caller waiting.

    To be closed: workers do not listen to signals. workers: processes that load; 0: this one, when
    it is asked. prefetch: batches that each has ready. place: moves a tensor to the device. pin:
    their memory can be copied from while the host goes on.
    """

    def __init__(
        self,
        data: Data,
        numbers: Iterable[int],
        batch_size: int,
        place: Callable[[Tensor], Tensor],
        workers: int = 0,
        prefetch: int = 2,
        pin: bool = False,
    ):
        self.data, self.place, self.waited, self._began = data, place, 0.0, False
        others = multiprocessing.active_children()
        requests = (data.request(number, batch_size) for number in numbers)
        if workers:
            # DataLoader itself draws a number, which must not be one of the run
            own = torch.Generator()
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([__name__])
            self._loaded: Iterator[Any] = iter(
                DataLoader(
                    _Loads(data),
                    batch_size=None,
                    sampler=requests,
                    num_workers=workers,
                    prefetch_factor=prefetch,
                    pin_memory=pin,
                    worker_init_fn=functools.partial(_begin, NICE),
                    multiprocessing_context=context,
                    generator=own,
                )
            )
        else:
            self._loaded = map(data.load, requests)
        self._workers = [x for x in multiprocessing.active_children() if x not in others]

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """Raises UserError: of the data, or of a worker that is gone."""
        begin = time.perf_counter()
        samples = self._next()
        self._began = True
        self.waited += time.perf_counter() - begin
        if isinstance(samples, UserError):
            raise samples
        return self.data.finish(samples, self.place)

    def _next(self) -> Any:
        try:
            return next(self._loaded)
        except (RuntimeError, ConnectionError, EOFError) as error:
            # DataLoader's only sign, or batches in a dead process's hands
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            if not self._began:
                raise LoaderError(
                    "A process that loads pictures ended before its first batch. A program that "
                    'trains must do so below `if __name__ == "__main__":`; or set train.workers=0.'
                ) from None
            raise LoaderError(
                "A process that loads pictures was killed from outside, most often because memory "
                "ran out; lower data.keep_gib, train.workers or train.prefetch, and start again: "
                "the run goes on from its last checkpoint."
            ) from None

    def close(self) -> None:
        """Ends the workers; one that does not end by itself has nothing to lose."""
        self._loaded = iter(())
        for worker in self._workers:
            if worker.is_alive():
                worker.kill()


def workers_for(device: torch.device) -> int:
    """How many suit a process that trains on a device of this type."""
    return min(8, max(1, cores() - 1)) if device.type == "cuda" else int(cores() > 1)


class _Loads(Dataset):
    """What workers call."""

    def __init__(self, data: Data):
        self.data = data

    def __getitem__(self, request: Any) -> Any:
        try:
            return self.data.load(request)
        except UserError as error:  # as a value: DataLoader would wrap it in a traceback
            return error


def _begin(nice: int, _worker: int) -> None:
    """A worker has one thread, and ends when `close` says so."""
    threading.Thread(target=_end_with_trainer, daemon=True).start()
    torch.set_num_threads(1)
    pyvips.concurrency_set(1)  # type: ignore  # it is in no stub
    os.nice(nice)
    ForkingPickler.register(Tensor, handed_over)
    for name in SIGNALS:
        signal.signal(getattr(signal, name), signal.SIG_IGN)


def _end_with_trainer() -> None:
    """A trainer that was killed says nothing, and its server process lives as long as its workers."""
    trainer = multiprocessing.parent_process()
    if trainer is not None:
        trainer.join()
        os._exit(1)
