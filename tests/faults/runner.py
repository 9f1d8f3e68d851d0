"""Runs check after check in worker processes that may neither crash nor hang nor take much memory."""

from __future__ import annotations

import multiprocessing
import resource
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

SECONDS = 10
MEMORY = 2**30  # bytes above what the worker holds before its first check


@dataclass
class Tally:
    """How often each verdict was given, and what must not happen: check number and what it did."""

    verdicts: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[int, str]] = field(default_factory=list)

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} {word}" for word, count in sorted(self.verdicts.items()))
        return f"{counts or 'none judged'}; {len(self.faults)} faults"


def run_all(check: Callable[[int], str], n: int) -> Tally:
    """`check(0)` to `check(n - 1)`, each a verdict in a word or two; any exception is a fault, and so
    is a crash, more than SECONDS or more than MEMORY.
    """
    tally, start = Tally(), 0
    context = multiprocessing.get_context("fork")  # what is imported here is there at once
    while start < n:
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(check, start, n, theirs), daemon=True)
        worker.start()
        theirs.close()
        start = _listen(worker, ours, start, n, tally)
        worker.kill()
        worker.join()
    return tally


def _listen(worker, ours, start: int, n: int, tally: Tally) -> int:
    """-> the number of the check that comes next, which needs a new worker unless it is n."""
    for number in range(start, n):
        if not ours.poll(SECONDS):
            tally.faults.append((number, f"took more than {SECONDS} s"))
            return number + 1
        try:
            verdict, fault = ours.recv()
        except EOFError:
            worker.join()
            tally.faults.append((number, f"ended the process with {worker.exitcode}"))
            return number + 1
        if fault:
            tally.faults.append((number, fault))
        else:
            tally.verdicts[verdict] += 1
    return n


def _work(check: Callable[[int], str], start: int, n: int, pipe) -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    for number in range(start, n):
        try:
            pipe.send((check(number), None))
        except Exception:
            pipe.send((None, traceback.format_exc(limit=-3)))
