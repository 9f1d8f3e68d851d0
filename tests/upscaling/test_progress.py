"""The time that is left, and where and how often it is said."""

import io
import logging
import os
import sys
from dataclasses import replace

import numpy as np
import pytest

from ldm_dream.data.image import Image
from ldm_dream.upscaling import progress as module
from ldm_dream.upscaling.folder import Result
from ldm_dream.upscaling.planning import Job
from ldm_dream.upscaling.progress import Progress, in_time

CALLS = 5  # steps a tile


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(progress: Progress, clock: Clock, pictures: int, seconds: float) -> None:
    """Pictures of 100 pixels, two tiles of `CALLS` steps each, so many seconds a step."""

    def upscale(picture: Image, callback) -> Image:
        for step in range(2 * CALLS + 1):
            callback(step, 2 * CALLS, None)
            clock.now += seconds if step < 2 * CALLS else 0
        return picture

    for _ in range(pictures):
        progress.watching(upscale)(Image(np.zeros((10, 10, 3), np.uint8)))


def test_lines_come_early_and_then_every_ten_seconds(clock, capsys):
    with Progress(300, 3, CALLS) as progress:
        run(progress, clock, 3, 4.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "  7%  picture 1 of 3, step 2 of 10 (2 tiles), about 2 min left"
    assert len(lines) == 1 + (120 - 8) // 12  # steps of four seconds
    assert lines[-1].startswith(" 97%  picture 3 of 3") and "about 4 s left" in lines[-1]


def test_a_picture_that_is_more_than_expected_has_time_left(clock, capsys):
    with Progress(0, 1, CALLS) as progress:
        run(progress, clock, 1, 20.0)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("about ")[1] for line in lines[1:3]] == ["3 min left", "2 min left"]


def test_pictures_that_failed_count_and_take_no_time(clock, capsys, tmp_path):
    job = Job(tmp_path / "a", tmp_path / "b")
    job.source.write_bytes(bytes(1000))
    failed = Result("a", "b", "failed", (10, 20))
    with Progress(400, 4, CALLS) as progress:
        progress.note(job, failed)
        run(progress, clock, 2, 20.0)
        progress.note(job, replace(failed, size_in=None))
        progress.note(job, replace(failed, size_out=(20, 40)))
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2] == " 95%  picture 3 of 4, step 9 of 10 (2 tiles), about 20 s left"
    assert progress.ended == 4


def test_short_work_says_nothing_but_on_a_terminal(clock, capsys, monkeypatch):
    with Progress(100, 1, CALLS) as progress:
        run(progress, clock, 1, 0.5)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("COLUMNS", "120")
    with Progress(100, 1, CALLS) as progress:
        run(progress, clock, 1, 0.5)
        progress.write("a result")
        logging.getLogger("ldm_dream.x").warning("a warning")
    shown = terminal.getvalue()
    assert " 50%|" in shown and "step 5 of 10 (2 tiles), about 2 s left" in shown
    assert "a warning" in shown and capsys.readouterr().out == "a result\n"


def test_quiet_says_nothing_at_all(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with Progress(300, 3, CALLS, quiet=True) as progress:
        run(progress, clock, 3, 40.0)
        progress.write("a result")
        progress.tell("a line")
    assert terminal.getvalue() == capsys.readouterr().out == ""


def test_times_are_in_words():
    assert [*map(in_time, (4.4, 99, 100, 720, 12000))] == [
        "4 s",
        "99 s",
        "2 min",
        "12 min",
        "3 h 20 min",
    ]


def test_a_terminal_without_a_size_has_80_columns(monkeypatch):
    monkeypatch.setattr(module.shutil, "get_terminal_size", lambda: os.terminal_size((0, 0)))
    assert module._columns() == 79
