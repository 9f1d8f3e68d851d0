"""A signal ends a run after the step in work, or a validation at once, with a whole checkpoint."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

AGAIN = 2.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class StoppedAtOnce(KeyboardInterrupt):
    """A signal came within `Stop.at_once`."""


class Stop:
    """Context in which Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP are only noted, but for `at_once`; another
    Ctrl-C, AGAIN seconds later or more, ends at once (torchrun passes on the one that the terminal
    has already sent). Outside of the main thread, which alone may say what signals do, nothing
    changes.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._at, self._ends_at_once = 0.0, False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._before = {
            number: signal.signal(number, self._note)
            for number in SIGNALS
            # nohup has the loss of the terminal ignored
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        }
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._at = signal.Signals(number), time.monotonic()
            when = "now" if self._ends_at_once else "after this step; wait"
            # stderr may be in the middle of a write
            os.write(2, f"{self.signal.name}: the run ends {when}.\n".encode())
            if self._ends_at_once:
                raise StoppedAtOnce
        elif number == signal.SIGINT and time.monotonic() - self._at > AGAIN:
            raise KeyboardInterrupt

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within, a signal raises StoppedAtOnce; so does one that came before."""
        self._ends_at_once = True
        try:
            if self.signal:
                raise StoppedAtOnce
            yield
        finally:
            self._ends_at_once = False

    @property
    def status(self) -> int:
        """Exit status as a shell gives it: 130 for Ctrl-C, 143 for SIGTERM; 0 without a signal."""
        return 128 + self.signal if self.signal else 0
