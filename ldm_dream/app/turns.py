"""Turns: one picture is made at a time, in the order in which they were asked for. Who asks again for
each picture takes turns with all others.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOOK = 0.1  # seconds between two looks at whether a turn is still wanted


class Turns:
    """A lock that is fair, and that need not be waited for."""

    def __init__(self) -> None:
        self._waiting: deque[object] = deque()  # the first one has its turn
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, check: Callable[[], None]) -> Iterator[None]:
        """The body is done when all who asked before are. check: called while it waits; what it
        raises ends that.
        """
        own = object()
        with self._changed:
            self._waiting.append(own)
        try:
            with self._changed:
                while self._waiting[0] is not own:
                    check()
                    self._changed.wait(LOOK)
            yield
        finally:
            with self._changed:
                self._waiting.remove(own)
                self._changed.notify_all()
