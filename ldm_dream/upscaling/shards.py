"""A folder of pictures shared among processes, on one machine or many: each takes what nobody has.

Claims on a disk that all see, not a fixed share for each rank: pictures differ in size, and what a
lost machine had taken goes to the others, while its share would wait for the next run.

Beside the outputs, in `.upscaling`:

    settings.json   of the run; a process with others is refused
    NAME.alive      of each process, touched every few seconds
    KEY.0, KEY.1    who took a picture, and who took it over when that one was gone
    KEY.done        its Result
    results.jsonl   all Results, when the run is finished; then the files of a KEY are removed

The same command again goes on where the last one stopped. Whoever comes when all is done tells what
was done.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ldm_dream.errors import UserError, shown
from ldm_dream.processes import is_known_gone, this_process
from ldm_dream.upscaling.folder import (
    Result,
    Work,
    failures,
    summary,
    upscale_all,
    write_report,
)
from ldm_dream.upscaling.forecast import forecast
from ldm_dream.upscaling.planning import Job, Plan
from ldm_dream.writing import claim_file, make_folder, whole_file

log = logging.getLogger(__name__)

FOLDER, SETTINGS, RESULTS = ".upscaling", "settings.json", "results.jsonl"
SOME_FAILED = 3  # exit status; that of any crash is 1, and may be tried again
END = "end"  # the key of writing results.jsonl
BEAT = 5.0  # seconds between two signs of life
SILENCE = 60.0  # seconds without one, after which a process of another machine counts as gone
PAUSE = 1.0  # seconds between two looks at what the others have left
# options of the command in which processes may differ
OF_A_PROCESS = {"output", "device", "json_report", "skip_existing", "share", "quiet"}
_OF_A_KEY = re.compile(r"(?P<key>\w+)\.(?P<number>\d+|done)")


class SharingError(UserError, RuntimeError):
    """A shared run that cannot be joined; its text is complete for the user."""


def is_under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first() -> bool:
    """Of the processes of torchrun; without it each is."""
    return not is_under_torchrun() or os.environ["RANK"] == "0"


def device_of_rank(name: str) -> str:
    """auto -> the GPU of this process of torchrun, where there are any; another name stays."""
    if name == "auto" and is_under_torchrun() and torch.cuda.is_available():
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return name


def share(settings: dict[str, Any], plan: Plan, work: Work, say: Callable[[str], object]) -> int:
    """This process's part of a command; -> its exit status, when all are done: SOME_FAILED where
    pictures failed, which stderr is told once. settings: of the command; its `json_report` is written
    by each process that has one, with all pictures. say: is told what this process does. Raises
    SharingError.
    """
    out, report = settings["output"], settings["json_report"]
    if [job.target for job in plan.jobs] == [out]:
        raise SharingError("one picture cannot be shared; leave out torchrun and --share.")

    def end(results: list[Result]) -> None:
        say(summary(plan, results))
        sys.stderr.writelines(failures(results))

    alike = {name: settings[name] for name in settings.keys() - OF_A_PROCESS}
    results = take_part(SharedRun(out, alike), plan, work, end, say)
    if report:
        write_report(report, settings, plan, results)
    return SOME_FAILED if failures(results) else 0


def take_part(
    run: SharedRun,
    plan: Plan,
    work: Work,
    end: Callable[[list[Result]], None],
    say: Callable[[str], object],
) -> list[Result]:
    """-> Results of all. end: is called with them in one of the processes, and in one that comes when
    all is done.
    """
    with run:
        if left := run.left(plan.jobs):
            expected = forecast(left, work.size, work.skip_existing)
            if expected.is_large and is_first():
                say(f"{expected}.")
            for result in run.upscale(plan.jobs, work):
                say(str(result))
            return run.finish(plan.jobs, end)
        results = run.finish(plan.jobs)
        if is_first():
            say(f"all was done before; remove {shown(run.place)} to do it anew.")
            end(results)
        return results


class SharedRun:
    """Context in which this process takes part. out: the folder of the outputs. settings: what
    decides how they look, the same in all processes. Raises SharingError, WriteError.
    """

    def __init__(self, out: Path, settings: dict[str, Any]):
        self.out, self.place = out, out / FOLDER
        self.name = f"{this_process()}-{secrets.token_hex(4)}"
        make_folder(self.place)
        self._agree({name: _text(value) for name, value in settings.items()})
        self._alive, self._leaving = self.place / f"{self.name}.alive", threading.Event()
        self._beats: dict[str, tuple[int, float]] = {}  # process -> its last sign, and when seen
        self._read: tuple[tuple[int, int], dict[str, Result]] = (
            (0, 0),
            {},
        )  # of which file, and what

    def __enter__(self) -> SharedRun:
        self._alive.touch()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()
        return self

    def __exit__(self, *_) -> None:
        self._leaving.set()
        self._heart.join()
        self._alive.unlink(missing_ok=True)  # what it took and has not done is free

    def _beat(self) -> None:
        is_told = False
        while not self._leaving.wait(BEAT):
            try:
                self._alive.touch()
            except OSError as error:  # a file server that is away for a moment
                if not is_told:
                    log.warning("%s: cannot be touched: %s.", shown(self._alive), error.strerror)
                is_told = True

    def _agree(self, mine: dict[str, str]) -> None:
        path = self.place / SETTINGS
        if claim_file(path, json.dumps(mine, indent=1) + "\n"):
            return
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise SharingError(
                f"{shown(path)} is empty or broken, as after a crash of its machine; remove it and "
                "give the options of this shared run again."
            ) from None
        for name in sorted({*mine, *theirs}):
            if mine.get(name) != theirs.get(name):
                raise SharingError(
                    f"{shown(self.out)}: its shared run has {name}={shown(theirs.get(name))}, not "
                    f"{shown(mine.get(name))}; give the same, another -o, or remove {shown(self.place)}."
                )

    # ------------------------------------------------------------------------------- the work

    def upscale(self, jobs: list[Job], work: Work) -> Iterator[Result]:
        """What this process does of the jobs; ends when all are done, by whomever."""
        work = replace(work, note=self._note)
        first = _first(len(jobs))
        left = jobs[first:] + jobs[:first]
        while left := self.left(left):
            before, taken = time.monotonic(), 0
            for result in upscale_all(self._taken(left), work):
                taken += 1
                yield result
            if not taken:  # a look at a million names takes longer than PAUSE
                time.sleep(max(PAUSE, time.monotonic() - before))

    def left(self, jobs: list[Job]) -> list[Job]:
        """Those that nobody has done."""
        done = self._look().done
        return [job for job in jobs if self._key(job) not in done]

    def finish(
        self, jobs: list[Job], report: Callable[[list[Result]], None] = lambda results: None
    ) -> list[Result]:
        """Waits until the Results of all jobs, which must be done, are kept; -> them. report: is
        called with them in one of the processes.
        """
        keys = [self._key(job) for job in jobs]
        while True:
            kept = self._kept()
            if all(key in kept for key in keys):
                return [kept[key] for key in keys]
            if self._take(END, self._look()):
                self._finish(keys, report)
            else:
                time.sleep(PAUSE)

    def _finish(self, keys: list[str], report: Callable[[list[Result]], None]) -> None:
        seen = self._look()
        results = dict(self._kept())
        if not all(key in results for key in keys):
            made = seen.done - results.keys()
            results |= {key: _result(self._path(key, "done").read_text("utf-8")) for key in made}
            report([results[key] for key in keys])
            lines = (json.dumps({"key": key} | asdict(results[key])) for key in results)
            with whole_file(self.place / RESULTS) as draft:
                draft.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        for path in list(self.place.iterdir()):
            found = _OF_A_KEY.fullmatch(path.name)
            is_left = path.suffix == ".alive" and not self._lives(path.stem)
            if is_left or (found and found["key"] in results):
                path.unlink(missing_ok=True)
        for number in range(self._look().claims.get(END, -1) + 1):
            self._path(END, number).unlink(missing_ok=True)

    def _taken(self, jobs: list[Job]) -> Iterator[Job]:
        """Those that nobody has, one by one as they are asked for."""
        seen = self._look()
        for job in jobs:
            key = self._key(job)
            if key not in seen.done and self._take(key, seen):
                yield job

    # ----------------------------------------------------------------------- what is on the disk

    def _take(self, key: str, seen: _Seen) -> bool:
        number = seen.claims.get(key, -1)
        if number >= 0 and self._is_held(self._path(key, number)):
            return False
        claim = self._path(key, number + 1)
        if not claim_file(claim, self.name):
            return False
        if self._path(key, "done").exists() or key in self._kept():  # since `seen`
            claim.unlink(missing_ok=True)
            return False
        return True

    def _note(self, job: Job, result: Result) -> None:
        with whole_file(self._path(self._key(job), "done")) as draft:
            draft.write_text(json.dumps(asdict(result)), encoding="utf-8")

    def _look(self) -> _Seen:
        claims, done = dict[str, int](), set[str]()
        # names first: what is removed in between is kept by then
        for found in filter(None, map(_OF_A_KEY.fullmatch, os.listdir(self.place))):
            key, number = found.groups()
            if number == "done":
                done.add(key)
            else:
                claims[key] = max(int(number), claims.get(key, 0))
        return _Seen(claims, done | self._kept().keys())

    def _kept(self) -> dict[str, Result]:
        """Of a finished run."""
        path = self.place / RESULTS
        try:
            status = path.stat()
        except FileNotFoundError:
            return {}
        if (which := (status.st_ino, status.st_mtime_ns)) != self._read[0]:
            lines = path.read_text(encoding="utf-8").splitlines()
            self._read = which, {json.loads(line)["key"]: _result(line) for line in lines}
        return self._read[1]

    def _is_held(self, claim: Path) -> bool:
        try:
            return self._lives(claim.read_text(encoding="utf-8"))
        except FileNotFoundError:  # the run is being finished
            return True

    def _lives(self, name: str) -> bool:
        if name == self.name:
            return True
        if not name or is_known_gone(name.rpartition("-")[0]):
            return False
        try:
            with (
                self.place / f"{name}.alive"
            ).open() as file:  # a server is asked when it is opened
                beat = os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return False
        # clocks of machines differ: what counts is that it changes
        if self._beats.get(name, (0, 0.0))[0] != beat:
            self._beats[name] = beat, time.monotonic()
        return time.monotonic() - self._beats[name][1] < SILENCE

    def _path(self, key: str, end: int | str) -> Path:
        return self.place / f"{key}.{end}"

    def _key(self, job: Job) -> str:
        name = os.fsencode(os.path.relpath(job.target, self.out))
        return hashlib.sha256(name).hexdigest()[:24]


@dataclass(frozen=True)
class _Seen:
    """claims: key -> number of the newest one."""

    claims: dict[str, int]
    done: set[str]


def _first(jobs: int) -> int:
    """Where this process begins: so processes meet late."""
    if is_under_torchrun():
        return int(os.environ["RANK"]) * jobs // int(os.environ["WORLD_SIZE"])
    return random.randrange(max(1, jobs))


def _text(setting: Any) -> str:
    return ", ".join(map(str, setting)) if isinstance(setting, list) else str(setting)


def _result(text: str) -> Result:
    values = json.loads(text)
    values.pop("key", None)
    sizes = {name: tuple(values[name]) for name in ("size_in", "size_out") if values[name]}
    return Result(**values | sizes)
