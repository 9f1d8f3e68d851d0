"""A run is disturbed again and again, and must end as one that never was: weights, averages, optimizer
and log bit for bit.

Disturbances, in turn by the seed: SIGKILL at any moment, also inside a save; SIGTERM; a disk that is
full; a run folder that may not be written to. Each start is a forked process that calls `train`.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from faults.runner import Tally
from ldm_dream.cli import user_errors
from ldm_dream.config.files import dump_config, load_config
from ldm_dream.config.run import Run
from ldm_dream.digests import digest
from ldm_dream.training.train import train
from runs import diffusion_run

STEPS = 12
FULL = 100_000  # bytes, less than a checkpoint has
NOBODY = 65534


def run(n: int, seed: int) -> Tally:
    """n disturbances, and the end of every run that had some."""
    torch.set_num_threads(1)  # threads do not survive a fork
    choose, tally = random.Random(seed), Tally()
    with _disk() as tmp:
        wait(fork(lambda: make(tmp)))  # libvips' threads would not survive a fork either
        config = load_config(tmp / "run.yaml")
        began = time.monotonic()
        assert _finish(config, tmp / "whole") == 0, said(tmp)
        length = time.monotonic() - began
        wanted, disturbed, runs = _end(tmp / "whole"), 0, 0
        while disturbed < n:
            folder = tmp / f"run-{runs}"
            runs += 1
            for _ in range(choose.randint(1, 8)):
                if disturbed == n:
                    break
                kind = choose.choices(("kill", "term", "full", "locked"), (8, 2, 1, 1))[0]
                verdict, fault = DISTURBANCES[kind](config, folder, choose.uniform(0, length))
                if verdict == "ended before it":
                    break
                disturbed += 1
                tally.verdicts[verdict] += 1
                if fault:
                    tally.faults.append((disturbed, f"{folder.name}: {fault}; {said(tmp)}"))
            if _finish(config, folder) != 0:
                tally.faults.append((disturbed, f"{folder.name}: the last start: {said(tmp)}"))
            elif differs := [key for key, value in _end(folder).items() if value != wanted[key]]:
                tally.faults.append((disturbed, f"{folder.name}: ends with other {differs}"))
            else:
                tally.verdicts["runs ended bit for bit alike"] += 1
            shutil.rmtree(folder)
    return tally


def _killed(config: Run, folder: Path, after: float) -> tuple[str, str | None]:
    status = _signalled(config, folder, after, signal.SIGKILL)
    if status == 0:
        return "ended before it", None
    drafts = [path.name for path in folder.rglob(".draft-*")]
    fault = None if status == -signal.SIGKILL else f"SIGKILL ended it with {status}"
    return ("SIGKILL inside a save" if drafts else "SIGKILL"), fault


def _terminated(config: Run, folder: Path, after: float) -> tuple[str, str | None]:
    status = _signalled(config, folder, after, signal.SIGTERM)
    if status == 0:
        return "ended before it", None
    early = status == -signal.SIGTERM  # before it could note signals
    fault = None if early or status == 143 else f"SIGTERM ended it with {status}"
    if not fault and not early and (folder / "checkpoints").is_dir():
        drafts = list((folder / "checkpoints").glob(".draft-*"))
        fault = f"SIGTERM left {drafts[0]}" if drafts else None
    return "SIGTERM", fault


def _full(config: Run, folder: Path, after: float) -> tuple[str, str | None]:
    ballast = folder.parent / "ballast"
    if not os.path.ismount(folder.parent):  # the same error of write() without a disk of our own

        def limit() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, FULL))

        return "full disk (by RLIMIT_FSIZE)", _refused(start(config, folder, limit))
    disk = os.statvfs(folder.parent)
    left = int(after * FULL / 2)
    ballast.write_bytes(bytes(max(0, disk.f_bavail * disk.f_frsize - left)))
    try:
        return "full disk (tmpfs)", _refused(start(config, folder))
    finally:
        ballast.unlink()


def _locked(config: Run, folder: Path, after: float) -> tuple[str, str | None]:
    folder.mkdir(exist_ok=True)
    folder.chmod(0o555)
    try:
        if os.geteuid() == 0:  # who may write anywhere
            return "read-only folder", _refused(start(config, folder, lambda: os.setuid(NOBODY)))
        return "read-only folder", _refused(start(config, folder))
    finally:
        folder.chmod(0o755)


DISTURBANCES = {"kill": _killed, "term": _terminated, "full": _full, "locked": _locked}


def _signalled(config: Run, folder: Path, after: float, number: int) -> int:
    process = start(config, folder)
    end = time.monotonic() + after
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(process, number)
    return wait(process)


def _refused(process: int) -> str | None:
    """A fault, unless it ended by one sentence (status 2)."""
    status = wait(process)
    return None if status == 2 else f"it ended with {status}"


def _finish(config: Run, folder: Path) -> int:
    return wait(start(config, folder))


@contextmanager
def _disk() -> Iterator[Path]:
    """A folder, on a small disk of its own where this process may mount one."""
    with tempfile.TemporaryDirectory() as name:
        mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", name]
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
        os.chmod(name, 0o755)
        try:
            yield Path(name)
        finally:
            if mounted:
                subprocess.run(["umount", name], check=True)


def make(tmp: Path) -> int:
    run = diffusion_run(tmp, steps=STEPS, save_every=1, val_every=4)
    return 0 if (tmp / "run.yaml").write_text(dump_config(run)) else 1


def start(config: Run, folder: Path, before: Callable[[], None] = lambda: None) -> int:
    def body() -> int:
        with _said_to(folder.with_name("said.txt")), user_errors():
            before()
            return train(config, folder)

    return fork(body)


def fork(body: Callable[[], int]) -> int:
    """-> the number of the process that runs it; what it gives is its exit status."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        status = body()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


@contextmanager
def _said_to(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        yield


def said(tmp: Path) -> str:
    """The last line of the process that was started last."""
    return (tmp / "said.txt").read_text().strip().rpartition("\n")[2]


def wait(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _end(folder: Path) -> dict[str, object]:
    """What a run leaves, but for times and commands."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("steps_per_second", None)
        row.pop("data_wait", None)
        row.pop("eta_s", None)
        row.pop("memory_gib", None)
    files = ("model/model.safetensors", "model-best/model.safetensors")
    state = f"checkpoints/step-{STEPS:08d}/state.safetensors"
    drafts = sorted(path.name for path in folder.rglob(".draft-*"))
    found = {name: digest(folder / name) for name in (*files, state)}
    return {**found, "metrics.jsonl": rows, "drafts": drafts}
