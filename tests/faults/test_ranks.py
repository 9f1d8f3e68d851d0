"""What `ranks` counts, judged by itself."""

import os
import time

from faults import kills, ranks
from machines import batches_used, notes_of


def test_the_last_attempt_at_a_step_is_what_counts(tmp_path):
    lines = ("0 0", "0 1", "0 2", "0 3", "1 2")  # the second attempt lacks the micro-batch 3
    (tmp_path / "run.txt").write_text("\n".join(lines) + "\n")
    assert batches_used(notes_of(tmp_path / "run"), 2) == {0: {0, 1}, 1: {2}}


def test_only_a_living_process_is_disturbed():
    ended = kills.fork(lambda: 0)
    os.waitid(os.P_PID, ended, os.WEXITED | os.WNOWAIT)
    assert not ranks._strike(ended, "SIGKILL") and not ranks._strike(ended, "SIGSTOP")
    stopped, killed = (kills.fork(lambda: time.sleep(60) or 0) for _ in range(2))
    assert ranks._strike(stopped, "SIGSTOP") and ranks._strike(killed, "SIGKILL")
    assert ranks._strike(stopped, "SIGKILL")
    assert ranks._join([ended, stopped, killed]) == [0, -9, -9]
