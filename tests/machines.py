"""Machines of a torchrun job ("nodes" in its words), all on this one, for tests.

A machine is torchrun's own agent in a process, which starts its ranks as others; torch is imported
once for each machine.
"""

import os
import signal
import socket
import time
from pathlib import Path

from processes import IMPORTED
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args

from ldm_dream.config.files import load_config
from ldm_dream.data.pairs import PairDataset
from ldm_dream.training import distributed
from ldm_dream.training.train import train

RANKS = 2  # of each machine
# short, but not so short that a busy machine looks like a lost one
RENDEZVOUS = "join_timeout=120,last_call_timeout=1,keep_alive_interval=2,keep_alive_max_attempt=5"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def options(port: int, nodes: str, job: str, hosts: bool) -> list[str]:
    """Of torchrun. hosts: this machine keeps the store in which they find each other."""
    return [
        f"--nnodes={nodes}", f"--nproc-per-node={RANKS}", "--max-restarts=3", "--rdzv-backend=c10d",
        f"--rdzv-endpoint=localhost:{port}", f"--rdzv-id={job}", "--local-addr=localhost",
        f"--rdzv-conf={RENDEZVOUS},is_host={int(hosts)}", "--monitor-interval=0.5",
    ]  # fmt: skip


def start_machine(told: list[str], config: Path, run_dir: Path, **environment: str):
    """-> its process, the first of a group of its own, in which its ranks are too."""
    machine = IMPORTED.Process(target=_machine, args=(told, config, run_dir, environment))
    machine.start()
    return machine


def lose(machine) -> None:
    """As by a loss of power."""
    os.killpg(machine.pid, signal.SIGKILL)
    machine.join()


def wait_for(run_dir: Path, step: int, *alive) -> None:
    """Until the checkpoint of `step` is there; raises RuntimeError where a machine ends before."""
    while not (run_dir / f"checkpoints/step-{step:08d}").is_dir():
        if not all(machine.is_alive() for machine in alive):
            raise RuntimeError(f"a machine ended before step {step}")
        time.sleep(0.02)


def _machine(told: list[str], config: Path, run_dir: Path, environment: dict[str, str]) -> None:
    os.setsid()
    os.environ |= {"OMP_NUM_THREADS": "1"} | environment
    launch = config_from_args(parse_args([*told, "train.py"]))[0]
    launch.start_method = "forkserver"
    elastic_launch(launch, _rank)(config, run_dir)


def _rank(config: Path, run_dir: Path) -> None:
    distributed.SILENCE, distributed.BEAT = 10.0, 0.5
    note_batches(notes_of(run_dir), int(os.environ["TORCHELASTIC_RESTART_COUNT"]))
    if status := train(load_config(config), run_dir):
        raise SystemExit(status)


def notes_of(run_dir: Path) -> Path:
    return run_dir.with_suffix(".txt")


def note_batches(path: Path, attempt: int) -> None:
    """From here on each micro-batch that is asked for is a line: number of the attempt and its own."""
    real = PairDataset.request

    def request(self, number, batch_size):
        with path.open("a") as file:
            file.write(f"{attempt} {number}\n")
        return real(self, number, batch_size)

    PairDataset.request = request


def batches_used(path: Path, a_step: int) -> dict[int, set[int]]:
    """Step -> micro-batches that the last attempt at it has made, in all of its processes. a_step:
    micro-batches of a step.
    """
    used: dict[int, tuple[int, set[int]]] = {}
    for line in path.read_text().splitlines():
        attempt, number = map(int, line.split())
        last, numbers = used.get(number // a_step, (-1, set()))
        if attempt >= last:
            used[number // a_step] = attempt, {number} | (numbers if attempt == last else set())
    return {step: numbers for step, (_, numbers) in used.items()}
