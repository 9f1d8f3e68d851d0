"""A run of two processes, one of which is killed or stopped again and again, goes on with 1, 2 or 3.

The other process must end soon after (distributed.SILENCE, set short here). At the end, every step
has used the samples that an undisturbed run uses, and the weights agree up to the rounding of sums.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from faults import kills
from faults.runner import Tally
from ldm_dream.config.files import load_config
from ldm_dream.config.run import Run
from ldm_dream.data.pairs import PairDataset
from ldm_dream.training import distributed

SILENCE, BEAT = 3.0, 0.3  # seconds
LONGEST = SILENCE + 10


def run(n: int, seed: int) -> Tally:
    torch.set_num_threads(1)
    distributed.SILENCE, distributed.BEAT = SILENCE, BEAT
    choose, tally = random.Random(seed), Tally()
    with tempfile.TemporaryDirectory() as name:
        tmp = Path(name)
        kills.wait(kills.fork(lambda: kills.make(tmp)))
        config = load_config(tmp / "run.yaml")
        began = time.monotonic()
        assert _join(_launch(config, tmp / "whole", 2)) == [0, 0], "the undisturbed run fails"
        length, world = time.monotonic() - began, 2
        for number in range(n):
            how, victim = choose.choice(("SIGKILL", "SIGSTOP")), choose.randrange(world)
            processes = _launch(config, tmp / "disturbed", world)
            time.sleep(choose.uniform(0.3, 0.9) * length)
            os.kill(processes[victim], getattr(signal, how))
            fault = _others_end([p for p in processes if p != processes[victim]])
            os.kill(processes[victim], signal.SIGKILL)
            _join(processes)
            tally.verdicts[f"{how} of one of {world}"] += 1
            if fault:
                tally.faults.append((number, f"{how} of process {victim} of {world}: {fault}"))
            world = choose.randint(1, 3) if number else 2  # the first start has two
        if _join(_launch(config, tmp / "disturbed", world)) != [0] * world:
            tally.faults.append((n, f"the last start, with {world} processes, fails"))
        else:
            _compare(tmp, tally)
    return tally


def _compare(tmp: Path, tally: Tally) -> None:
    for step, numbers in _used(tmp / "disturbed").items():
        if numbers != {2 * step, 2 * step + 1}:
            tally.faults.append((step, f"step {step} used the micro-batches {sorted(numbers)}"))
    want, got = (
        load_file(tmp / name / "model" / "model.safetensors") for name in ("whole", "disturbed")
    )
    worst = max((want[key] - got[key]).abs().max().item() for key in want)
    if worst > 1e-5:
        tally.faults.append((0, f"a weight of the model is off by {worst:.1e}"))
    tally.verdicts["steps with the samples of an undisturbed run"] += len(_used(tmp / "disturbed"))


def _used(folder: Path) -> dict[int, set[int]]:
    """Step -> micro-batches that were made for it, by any process at any time."""
    used: dict[int, set[int]] = {}
    for line in (folder.parent / f"{folder.name}.txt").read_text().splitlines():
        number = int(line)
        used.setdefault(number // 2, set()).add(number)
    return used


def _launch(config: Run, folder: Path, world: int) -> list[int]:
    """As torchrun does: one process a rank, told by its environment."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(world):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}

        def before(told=told) -> None:
            os.environ.update({key: str(value) for key, value in told.items()})
            os.environ["MASTER_ADDR"] = "localhost"
            _note_batches(folder)

        processes.append(kills.start(config, folder, before))
    return processes


def _note_batches(folder: Path) -> None:
    real = PairDataset.batch

    def batch(self, number, batch_size):
        with (folder.parent / f"{folder.name}.txt").open("a") as file:
            file.write(f"{number}\n")
        return real(self, number, batch_size)

    PairDataset.batch = batch


def _others_end(processes: list[int]) -> str | None:
    began = time.monotonic()
    waiting = list(processes)
    while waiting and time.monotonic() - began < LONGEST:
        waiting = [
            p
            for p in waiting
            if os.waitid(os.P_PID, p, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        ]
        time.sleep(0.05)
    for process in waiting:
        os.kill(process, signal.SIGKILL)
    return f"another one was still there after {LONGEST} s" if waiting else None


def _join(processes: list[int]) -> list[int]:
    return [kills.wait(process) for process in processes]
