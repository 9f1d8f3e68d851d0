"""One of two machines of a torchrun job is lost at a random moment; the other one goes on by itself.

A machine is torchrun's agent and its two processes, all killed at once. torchrun starts those of the
other machine again; at the end the last attempt at every step has used the samples of an undisturbed
run, and the weights agree up to the rounding of sums.
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

from faults import kills
from faults.ranks import compare
from faults.runner import Tally
from machines import RANKS, free_port, lose, options, start_machine, wait_for

LONGEST = 180.0  # seconds


def run(n: int, seed: int) -> Tally:
    choose, tally = random.Random(seed), Tally()
    with tempfile.TemporaryDirectory() as name:
        tmp = Path(name)
        kills.wait(kills.fork(lambda: kills.make(tmp)))
        whole = _start(tmp, "whole", True, {})
        assert _ends(*whole) == [0, 0], "the undisturbed run fails"
        for number in range(n):
            with_lock, step = choose.random() < 0.5, choose.randrange(1, kills.STEPS - 1)
            own = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": choose.choice("01")}
            folder = tmp / f"run-{number}"
            host, other = _start(tmp, folder.name, not with_lock, own)
            wait_for(folder, step, host, other)
            time.sleep(choose.uniform(0, 0.3))
            tally.verdicts[f"machine {'with' if with_lock else 'without'} process 0 lost"] += 1
            lose(other)
            if (status := _ends(host)) != [0]:
                tally.faults.append((number, f"the other machine ends with {status}, {own}"))
            else:
                compare(tmp / "whole", folder, 2 * RANKS, tally)
    return tally


def _start(tmp: Path, name: str, host_first: bool, environment: dict[str, str]) -> list:
    """-> the machine that keeps torchrun's store, without which nothing goes on, and the other one.
    The processes of the one that is started first have the first numbers.
    """
    port, started = free_port(), {}
    for hosts in (True, False) if host_first else (False, True):
        told = options(port, "1:2", name, hosts)
        started[hosts] = start_machine(told, tmp / "run.yaml", tmp / name, **environment)
    return [started[True], started[False]]


def _ends(*machines) -> list[int | None]:
    for machine in machines:
        machine.join(LONGEST)
        if machine.is_alive():
            lose(machine)
    return [machine.exitcode for machine in machines]
