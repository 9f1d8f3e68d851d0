"""A run folder holds one run, and one process trains it at a time.

`claim` is the door: it refuses a folder of something else and a folder in use. `changes` compares the
run with the one that wrote its checkpoint, and `refuse_another_run` refuses what would make it
another. `config.yaml` and `history.jsonl` (one row a start: when, from which step, command, versions,
what changed) are there before any data is read.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch

from ldm_dream import __version__
from ldm_dream.config.files import dump_config
from ldm_dream.config.run import MAY_CHANGE, Run
from ldm_dream.errors import UserError
from ldm_dream.model_config import AUTOENCODER, parse_run
from ldm_dream.processes import is_running
from ldm_dream.training.checkpoint import Checkpoint, checkpoints
from ldm_dream.training.log import METRICS, read_rows
from ldm_dream.writing import OF_A_RUN, WriteError, append_line, make_folder, whole_file

BEAT, STALE = (
    60.0,
    600.0,
)  # seconds between two signs of life, and without one until it counts as gone
HANDOVER = (
    120.0  # seconds; a server of NFS 4 keeps a lock that long at most for a machine that is lost
)
LOCK, CONFIG, HISTORY = "lock", "config.yaml", OF_A_RUN
_WRITTEN = (
    "model",
    "model-best",
    "checkpoints",
    "samples",
    HISTORY,
    CONFIG,
    METRICS,
    AUTOENCODER,
)


class RunFolderError(UserError, RuntimeError):
    """A run folder that this run may not use; its text is complete for the user."""


# ---------------------------------------------------------------------------------------- the door


@contextmanager
def claim(run_dir: Path) -> Iterator[str | None]:
    """This process alone may write to `run_dir` in the body; -> what is to be said of a lock that
    was left behind. Raises RunFolderError, WriteError.

    The lock is held by the system and so is gone with its process; the file says whose it is. Where
    machines do not share locks, the file's time shows whether the other one lives: it is set every
    minute. A process of the same torchrun job is one of an earlier start, which torchrun has ended or
    given up for lost, so its lock is taken over at once, or as soon as the system lets go of it.
    """
    make_folder(run_dir)
    _refuse_foreign(run_dir)
    path = run_dir / LOCK
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise WriteError(f"{path}: cannot be written: {error.strerror}.") from None
    with file:
        owner, me = _read_lock(file), Owner(socket.gethostname(), str(os.getpid()), _job())
        until = time.monotonic() + (HANDOVER if _same_job(owner, me) else 0.0)
        while (busy := _busy(file, owner, me)) is not None and time.monotonic() < until:
            time.sleep(0.2)
        if busy is not None:
            host, process = owner[:2] if owner else (me.host, "?")
            raise RunFolderError(
                f"{run_dir}: process {process} on {host} trains this run; "
                f"wait for it, stop it, or give another --run-dir{busy}."
            )
        try:
            _write_lock(file, " ".join(filter(None, me)) + "\n")
        except OSError as error:
            raise WriteError(f"{path}: cannot be written: {error.strerror}.") from None
        done = threading.Event()
        beat = threading.Thread(target=_keep_fresh, args=(path, done), daemon=True)
        beat.start()
        try:
            yield (
                owner
                and f"the lock of process {owner.process} on {owner.host}, which is gone, is taken over"
            )
        finally:
            done.set()
            beat.join()
            _write_lock(file, "")


class Owner(NamedTuple):
    """Of a lock. job: of torchrun, the same after each restart and on all machines; empty: none."""

    host: str
    process: str
    job: str = ""


def _job() -> str:
    name = "".join(os.environ.get("TORCHELASTIC_RUN_ID", "").split())
    return "" if name == "none" else name  # as torchrun calls a job without --rdzv-id


def _same_job(owner: Owner | None, me: Owner) -> bool:
    return owner is not None and owner.job == me.job != ""


def _is_another_here(owner: Owner, me: Owner) -> bool:
    """The same number is this process: containers that start again count from the same one."""
    is_other = owner.process != me.process and not _same_job(owner, me)
    return owner.host == me.host and is_other and is_running(int(owner.process))


def _busy(file: TextIO, owner: Owner | None, me: Owner) -> str | None:
    """None where nobody trains; else what to add to the sentence."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return ""
    except OSError:  # a file system without locks: the name and number must do
        if owner and _is_another_here(owner, me):
            return ""
    age = time.time() - os.fstat(file.fileno()).st_mtime
    if owner and owner.host != me.host and age < STALE and not _same_job(owner, me):
        return f"; if that process is gone, remove {file.name} or wait {STALE / 60:.0f} minutes"
    return None


def _keep_fresh(path: Path, done: threading.Event) -> None:
    while not done.wait(BEAT):
        with suppress(OSError):  # a disk that is gone is for the run itself to report
            os.utime(path)


def _read_lock(file: TextIO) -> Owner | None:
    file.seek(0)
    words = file.read().split()
    return Owner(*words) if len(words) in (2, 3) and words[1].isdecimal() else None


def _write_lock(file, text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()


def _is_history(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            return "command" in json.loads(file.readline())
    except (OSError, ValueError, TypeError):
        return False


def _refuse_foreign(run_dir: Path) -> None:
    if checkpoints(run_dir) or _is_history(run_dir / HISTORY):
        return
    if there := [name for name in _WRITTEN if os.path.lexists(run_dir / name)]:
        raise RunFolderError(
            f"{run_dir}: holds {there[0]} but no run that was started here; "
            "give another --run-dir, or move that away."
        )


# --------------------------------------------------------------------------------- one run a folder


def run_of(found: Checkpoint, run_dir: Path) -> Run:
    """The run that wrote a checkpoint. Raises RunFolderError."""
    try:
        return parse_run(found.meta["config"], f"the checkpoint of step {found.step}")
    except (KeyError, UserError) as error:
        raise RunFolderError(
            f"{run_dir}: was written by another version of ldm_dream, whose config this one "
            f"cannot read ({error}); finish it there, or give another --run-dir."
        ) from None


def refuse_lost_checkpoints(run_dir: Path) -> None:
    """Raises RunFolderError where the log goes on after the step of a first checkpoint, and there is
    none: it would be written anew from 0.
    """
    last = max((row["step"] for row in read_rows(run_dir / METRICS)), default=0)
    if not last:
        return
    try:
        config = parse_run((run_dir / CONFIG).read_text(encoding="utf-8"), str(run_dir / CONFIG))
        first = min(config.train.save_every, config.train.steps)
    except (UserError, OSError):
        first = 0
    if last > first:
        raise RunFolderError(
            f"{run_dir}: has a log up to step {last} and no checkpoint; "
            "put one back, or give another --run-dir."
        )


def changes(earlier: Run, run: Run) -> dict[str, list[Any]]:
    """Key -> [value then, value now] of all knobs that differ."""
    then, now = _flat(earlier.model_dump(mode="json")), _flat(run.model_dump(mode="json"))
    keys = [*then, *(key for key in now if key not in then)]
    return {key: [then.get(key), now.get(key)] for key in keys if then.get(key) != now.get(key)}


def refuse_another_run(run_dir: Path, changed: dict[str, list[Any]]) -> None:
    """Raises RunFolderError for a change of anything but MAY_CHANGE."""
    wrong = {key: values for key, values in changed.items() if key not in MAY_CHANGE}
    if wrong:
        listed = ", ".join(
            f"{key} was {old!r} and is now {new!r}" for key, (old, new) in wrong.items()
        )
        raise RunFolderError(
            f"{run_dir} holds a run with other settings: {listed}; "
            "set them back, or give another --run-dir (train.init_from takes over weights)."
        )


def record(run_dir: Path, run: Run, step: int, changed: dict[str, list[Any]]) -> dict[str, Any]:
    """Write what is started: a row of `history.jsonl`, by which the folder is known as a run's, and
    `config.yaml`; -> that row.
    """
    row = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "step": step,
        "command": shlex.join(sys.argv),
        "versions": {
            "ldm_dream": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "commit": commit(),
        "changed": changed,
    }
    append_line(run_dir / HISTORY, json.dumps(row))
    with whole_file(run_dir / CONFIG) as draft:
        draft.write_text(dump_config(run), encoding="utf-8")
    return row


def commit() -> str | None:
    """Commit of the checkout that this code runs from, marked where files were changed; None outside
    of one, such as in site-packages below someone's project.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    place = ["rev-parse", "--show-prefix"]
    name = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answers = [
            subprocess.run([*git, *ask], capture_output=True, text=True, timeout=10)
            for ask in (place, name)
        ]
    except (OSError, subprocess.TimeoutExpired):
        return None
    ours = answers[0].stdout.strip() == "ldm_dream/training/"
    return answers[1].stdout.strip() if ours and answers[1].returncode == 0 else None


def _flat(values: dict, above: str = "") -> dict[str, Any]:
    found = {}
    for key, value in values.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return found
