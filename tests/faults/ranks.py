"""Runs of several processes, one of which is killed or stopped again and again, go on with 1, 2 or 3.

The other processes must end soon after (distributed.SILENCE, set short here). At the end, the last
attempt at every step has used the samples that an undisturbed run uses, and the weights agree up to
the rounding of sums.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from faults import kills
from faults.runner import Tally
from ldm_dream.config.files import load_config
from ldm_dream.config.run import Run
from ldm_dream.training import distributed
from machines import batches_used, note_batches, notes_of

SILENCE, BEAT = 5.0, 0.3  # seconds
LONGEST = SILENCE + 10
LONGEST_RUN = 120.0  # of one that nobody disturbs
MOST = 4  # disturbances of one run
ENDED = "ended before it"


def run(n: int, seed: int) -> Tally:
    torch.set_num_threads(1)
    distributed.SILENCE, distributed.BEAT = SILENCE, BEAT
    choose, tally = random.Random(seed), Tally()
    with tempfile.TemporaryDirectory() as name:
        tmp = Path(name)
        kills.wait(kills.fork(lambda: kills.make(tmp)))
        config = load_config(tmp / "run.yaml")
        began = time.monotonic()
        assert _finish(config, tmp / "whole", 2, 0) == [0, 0], "the undisturbed run fails"
        length = time.monotonic() - began
        disturbed, runs = 0, 0
        while disturbed < n:
            folder, attempt = tmp / f"run-{runs}", 0
            runs += 1
            for attempt in range(choose.randint(1, MOST)):
                if disturbed == n:
                    break
                world = _next_world(folder, choose)
                verdict, fault = _disturb(config, folder, attempt, world, choose, length)
                tally.verdicts[verdict] += 1
                disturbed += verdict != ENDED
                if fault:
                    tally.faults.append((disturbed, f"{folder.name}, {verdict}: {fault}"))
                if verdict == ENDED:
                    break
            world = _next_world(folder, choose)
            if _finish(config, folder, world, attempt + 1) != [0] * world:
                tally.faults.append((disturbed, f"the last start, with {world} processes, fails"))
            else:
                compare(tmp / "whole", folder, 2, tally)
    return tally


def _next_world(folder: Path, choose: random.Random) -> int:
    """Two until there is a checkpoint, which holds how many micro-batches a step of the run has."""
    return choose.randint(1, 3) if any(folder.glob("checkpoints/step-*")) else 2


def _disturb(
    config: Run, folder: Path, attempt: int, world: int, choose: random.Random, length: float
) -> tuple[str, str | None]:
    """-> verdict, and what went wrong. Of one process there are no others that must end."""
    how = choose.choice(("SIGKILL", "SIGSTOP")) if world > 1 else "SIGKILL"
    with _store() as port:
        processes = _launch(config, folder, world, attempt, port)
        time.sleep(choose.uniform(0.3, 0.9) * length)
        victim = choose.choice(processes)
        was_alive = _strike(victim, how)
        fault = _others_end([process for process in processes if process != victim])
        os.kill(victim, signal.SIGKILL)
        ends = _join(processes)
    if not was_alive:
        failed = f"ended with {ends}, undisturbed" if any(ends) else None
        return ENDED, fault or failed
    return f"{how} of one of {world}" if world > 1 else f"{how} of a single one", fault


def _strike(process: int, how: str) -> bool:
    """Whether the signal met a process that was alive."""
    os.kill(process, getattr(signal, how))  # of a child that has ended it is without effect
    found = os.waitid(os.P_PID, process, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    return found is not None and found.si_code in (os.CLD_KILLED, os.CLD_STOPPED)


def compare(whole: Path, folder: Path, a_step: int, tally: Tally) -> None:
    """Samples and weights of a run with those of an undisturbed one. a_step: its micro-batches."""
    used = batches_used(notes_of(folder), a_step)
    for step in range(kills.STEPS):
        numbers = used.get(step, set())
        if numbers == set(range(a_step * step, a_step * (step + 1))):
            tally.verdicts["steps with the samples of an undisturbed run"] += 1
        else:
            tally.faults.append((step, f"step {step} used the micro-batches {sorted(numbers)}"))
    want, got = (load_file(run / "model" / "model.safetensors") for run in (whole, folder))
    worst = max((want[key] - got[key]).abs().max().item() for key in want)
    if worst > 1e-5:
        tally.faults.append((0, f"a weight of the model is off by {worst:.1e}"))


def _finish(config: Run, folder: Path, world: int, attempt: int) -> list[int]:
    with _store() as port:
        processes = _launch(config, folder, world, attempt, port)
        _others_end(processes, LONGEST_RUN)
        return _join(processes)


@contextmanager
def _store() -> Iterator[int]:
    """The port of a store that this process keeps, as torchrun does: none of those that are disturbed."""
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    yield store.port


def _launch(config: Run, folder: Path, world: int, attempt: int, port: int) -> list[int]:
    """As torchrun does: one process a rank, told by its environment."""
    processes = []
    for rank in range(world):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
        told["TORCHELASTIC_USE_AGENT_STORE"] = True

        def before(told=told) -> None:
            os.environ.update({key: str(value) for key, value in told.items()})
            os.environ["MASTER_ADDR"] = "localhost"
            note_batches(notes_of(folder), attempt)

        processes.append(kills.start(config, folder, before))
    return processes


def _others_end(processes: list[int], limit: float = LONGEST) -> str | None:
    began = time.monotonic()
    waiting = list(processes)
    while waiting and time.monotonic() - began < limit:
        waiting = [
            p
            for p in waiting
            if os.waitid(os.P_PID, p, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        ]
        time.sleep(0.05)
    for process in waiting:
        os.kill(process, signal.SIGKILL)
    return f"another one was still there after {limit} s" if waiting else None


def _join(processes: list[int]) -> list[int]:
    return [kills.wait(process) for process in processes]
