"""The end of a command by a signal: within a second, with one line that says what stays."""

from __future__ import annotations

import math
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ldm_dream.writing import remove_drafts

EXIT_INTERRUPTED = 128 + signal.SIGINT  # as a shell has it
EXIT_TERMINATED = 128 + signal.SIGTERM
PATIENCE = 0.7  # seconds that the work may take to end
WHOLE = "what was to be written is whole or not there"
ENDED = 0  # no signal has this number


class Terminated(KeyboardInterrupt):
    """SIGTERM came; whatever cleans up after Ctrl-C does so here too."""


@contextmanager
def stoppable(what_stays: str = WHOLE, patience: float = PATIENCE) -> Iterator[ExitStack]:
    """Body of a tool's `main`: Ctrl-C and SIGTERM -> one line of stderr with what stays of the work,
    exit status 130 or 143. -> what is to be done last, stopped or not, such as to write a report.

    Python hears of a signal between two of its own steps. A library may take longer over one, and
    the body may wait for a thread, such as one that writes a large picture. Where the body has not
    ended after `patience` seconds, the process is ended from another thread, as it is by a second
    signal.
    """

    def stop(number: int, frame: object) -> None:
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    before = {
        number: signal.signal(number, stop)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) != signal.SIG_IGN  # as nohup and a shell's & set it
    }
    try:
        with ExitStack() as last, _watched(what_stays, patience, last):
            yield last
    except KeyboardInterrupt as stopped:
        sys.stderr.write(f"stopped; {what_stays}.\n")
        terminated = isinstance(stopped, Terminated)
        raise SystemExit(EXIT_TERMINATED if terminated else EXIT_INTERRUPTED) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _watched(what_stays: str, patience: float, last: ExitStack) -> Iterator[None]:
    """During the body, a thread learns of every signal at once, by a pipe."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    _pipes.add(writing)

    def watch() -> None:
        ends: list[int] = []  # signals that end the work
        until = math.inf
        while len(ends) < 2:
            left = None if until == math.inf else max(0.0, until - time.monotonic())
            if not select.select([reading], [], [], left)[0]:
                break
            number = os.read(reading, 1)[0]
            if number == ENDED:
                os.close(reading)
                return
            if number in (signal.SIGINT, signal.SIGTERM):
                ends.append(number)
                until = min(until, time.monotonic() + patience)
        _end_at_once(f"\nstopped; {what_stays}.\n", last, 128 + ends[-1])

    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        _pipes.remove(writing)
        os.write(writing, bytes([ENDED]))
        watcher.join()  # one that has begun to end the process says so alone
        os.close(writing)


@contextmanager
def ends_when_stopped() -> Iterator[None]:
    """Body of a whole process: after a stop it ends at once, without the seconds that torch takes to
    be unloaded. Everything else passes through.
    """
    try:
        yield
    except SystemExit as end:
        if end.code not in (EXIT_INTERRUPTED, EXIT_TERMINATED):
            raise
        for child in multiprocessing.active_children():
            child.terminate()
        if sys.stdout:
            sys.stdout.flush()
        _end_at_once("", ExitStack(), end.code)


def _end_at_once(line: str, last: ExitStack, status: int) -> None:
    """Ends the process, whatever else goes wrong."""
    with ExitStack() as end:  # done from the last one to the first, each also where another fails
        end.callback(os._exit, status)
        end.callback(sys.stderr.flush)
        end.callback(remove_drafts)
        end.callback(last.close)
        end.callback(sys.stderr.write, line)


# a forked worker's signals are not those of this process: it leaves the pipe before it hears of any
_pipes: set[int] = set()
_masks: list[set[int]] = []


def _before_fork() -> None:
    _masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM}))


def _in_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop())


def _in_child() -> None:
    if (pipe := signal.set_wakeup_fd(-1)) not in _pipes:
        signal.set_wakeup_fd(pipe)
    _in_parent()


os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
