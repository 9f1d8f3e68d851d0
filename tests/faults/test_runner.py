"""The runner itself: a crash, a hang, a hunger for memory and an exception are each one fault."""

import os
import signal
import time

from faults import __main__, runner


def test_the_kinds_are_what_may_be_run():
    assert __main__.KINDS == ["configs", "folder", "kills", "nodes", "pictures", "ranks", "weights"]


def test_every_kind_of_fault_is_counted_and_the_rest_goes_on(monkeypatch):
    monkeypatch.setattr(runner, "SECONDS", 0.5)

    def check(number):
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 2:
            time.sleep(60)
        if number == 3:
            bytearray(2**31)
        if number == 4:
            raise KeyError("a mistake")
        return "fine"

    tally = runner.run_all(check, 6)
    assert tally.verdicts == {"fine": 2}
    assert [number for number, _ in tally.faults] == [1, 2, 3, 4]
    words = ("ended the process", "took more", "MemoryError", "a mistake")
    assert all(word in what for word, (_, what) in zip(words, tally.faults))
