"""A folder of pictures shared among processes, one of which is killed."""

import errno
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from processes import IMPORTED
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args

import machines
from ldm_dream import writing
from ldm_dream.commands import upscale as command
from ldm_dream.data.images import Image, read_image, write_image
from ldm_dream.upscaling import folder, shards
from ldm_dream.upscaling.folder import Work
from ldm_dream.upscaling.planning import plan_jobs
from ldm_dream.upscaling.shards import SharedRun, SharingError, take_part
from ldm_dream.upscaling.sizes import Size
from runs import pixel_model

COUNT = 8


@pytest.fixture
def pictures(tmp_path) -> Path:
    """0.png to 7.png, by their heights told apart."""
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        pixels = rng.integers(0, 256, (8 + number, 8, 3), dtype=np.uint8)
        write_image(tmp_path / "in" / f"{number}.png", Image(pixels))
    return tmp_path / "in"


def double(image: Image) -> Image:
    return replace(image, pixels=image.pixels.repeat(2, 0).repeat(2, 1))


def part(tmp: Path, upscale=double, settings=None, say=lambda text: None):
    """-> Results of all, and how often this process was told to report."""
    plan, reports = plan_jobs(tmp / "in", tmp / "out"), []
    run = SharedRun(tmp / "out", settings or {"scale": 2})
    return take_part(run, plan, Work(upscale, Size(2)), reports.append, say), len(reports)


def note_what_is_written(tmp: Path) -> None:
    """From here on each picture that is written is a line."""
    real = folder.write_image

    def write(path, *picture):
        real(path, *picture)
        writing.append_line(tmp / "written.txt", path.name)

    folder.write_image = write


def is_whole(tmp: Path) -> None:
    """Every result is there and right, none was written twice, nothing else is left."""
    written = (tmp / "written.txt").read_text().split()
    assert sorted(written) == [f"{number}.png" for number in range(COUNT)]
    names = {path.name for path in (tmp / "out").iterdir()}
    assert names == {*written, shards.FOLDER}
    left = {path.name for path in (tmp / "out" / shards.FOLDER).iterdir()}
    assert left == {shards.SETTINGS, shards.RESULTS}


# ----------------------------------------------------------------------------------- two processes


def before_each_picture(tmp: Path, victim: bool) -> Callable[[], None]:
    """To be called before a picture is computed. A victim is killed at its second one, when its first
    is noted; the other one waits for that.
    """
    calls, noted, note, dying = (
        itertools.count(1),
        threading.Event(),
        SharedRun._note,
        tmp / "dying",
    )

    def tell(run, *what):
        note(run, *what)
        noted.set()

    def call() -> None:
        if victim and next(calls) == 2:
            assert noted.wait(60)
            dying.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        while not (victim or dying.exists()):
            time.sleep(0.01)

    SharedRun._note = tell
    return call


def work(tmp: Path, victim: bool) -> None:
    shards.PAUSE = 0.1
    note_what_is_written(tmp)
    before = before_each_picture(tmp, victim)

    def upscale(image: Image) -> Image:
        before()
        return double(image)

    _, reports = part(tmp, upscale)
    raise SystemExit(10 + reports)


def test_of_two_workers_one_is_killed_and_the_other_finishes(pictures, tmp_path):
    workers = [IMPORTED.Process(target=work, args=(tmp_path, victim)) for victim in (True, False)]
    for worker in workers:
        worker.start()
    for worker in workers:  # the victim is reaped first, as torchrun does
        worker.join()
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL, 11]
    is_whole(tmp_path)
    for number in range(COUNT):
        wanted = double(read_image(pictures / f"{number}.png")).pixels
        assert np.array_equal(read_image(tmp_path / f"out/{number}.png").pixels, wanted)


def agent(words: list[str], tmp: Path) -> None:
    """torchrun, with its workers forked from a process that has imported torch."""
    os.environ["OMP_NUM_THREADS"] = "1"
    told = machines.options(machines.free_port(), "1", "job", hosts=True)
    launch = config_from_args(parse_args([*told, "upscale.py"]))[0]
    launch.start_method = "forkserver"
    elastic_launch(launch, rank)(words, tmp)


def rank(words: list[str], tmp: Path) -> None:
    note_what_is_written(tmp)
    shards.PAUSE, real = 0.1, folder._Picture.upscale
    is_victim = (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", "0")
    before = before_each_picture(tmp, is_victim)

    def upscale(picture):
        before()
        real(picture)

    folder._Picture.upscale = upscale
    command.main(words)


def test_torchrun_goes_on_when_one_of_two_workers_is_killed(pictures, tmp_path):
    model, report = pixel_model(tmp_path / "model"), tmp_path / "report.json"
    words = ["-i", pictures, "-o", tmp_path / "out", "-n", model, "--json-report", report]
    torchrun = IMPORTED.Process(target=agent, args=([str(word) for word in words], tmp_path))
    torchrun.start()
    torchrun.join()
    assert torchrun.exitcode == 0
    is_whole(tmp_path)
    told = json.loads(report.read_text())
    assert told["summary"] == f"{COUNT} done"
    for number, entry in enumerate(told["pictures"]):
        assert Path(entry["target"]) == tmp_path / f"out/{number}.png"
        assert read_image(entry["target"]).pixels.shape == (2 * (8 + number), 16, 3)


# ------------------------------------------------------------------------------------- one process


def test_the_same_command_again_does_only_what_is_new(pictures, tmp_path):
    (pictures / "7.png").write_text("no picture")
    said, computed = [], []

    def upscale(image):
        computed.append(image)
        return double(image)

    results, reports = part(tmp_path, upscale, say=said.append)
    assert [r.status for r in results] == ["done"] * 7 + ["failed"] and reports == 1
    assert len(said) == COUNT and results[0].size_out == (16, 16)
    assert part(tmp_path, upscale, say=said.append) == (results, 1)
    assert len(computed) == 7 and said[COUNT:] == [
        f"all was done before; remove {tmp_path / 'out' / shards.FOLDER} to do it anew."
    ]
    write_image(pictures / "8.png", Image(np.zeros((3, 3, 3), np.uint8)))
    more, reports = part(tmp_path, upscale)
    assert more[:-1] == results and more[-1].status == "done"
    assert len(computed) == 8 and reports == 1


def test_a_report_is_always_written_and_a_failure_is_status_3(pictures, tmp_path, capsys):
    """By a process that comes when all is done, too."""
    (pictures / "7.png").write_text("no picture")
    plan, said = plan_jobs(pictures, tmp_path / "out"), []
    settings = {"output": tmp_path / "out", "json_report": tmp_path / "r.json", "seed": 0}
    assert shards.share(settings, plan, Work(double, Size(2)), said.append) == 3
    failed = capsys.readouterr().err
    assert failed.startswith("failed: ") and "7.png" in failed and failed.count("\n") == 1
    report = json.loads((tmp_path / "r.json").read_text())
    assert said[-1] == report["summary"] == "7 done, 1 failed" and len(said) == COUNT + 1
    assert [p["status"] for p in report["pictures"]] == ["done"] * 7 + ["failed"]

    again = settings | {"device": "cpu", "json_report": tmp_path / "other.json"}
    assert shards.share(again, plan, Work(double, Size(2)), said.append) == 3
    assert json.loads((tmp_path / "other.json").read_text())["pictures"] == report["pictures"]
    assert said[-2].startswith("all was done before") and said[-1] == "7 done, 1 failed"
    assert capsys.readouterr().err == failed

    one = plan_jobs(pictures / "0.png", tmp_path / "one.png")
    with pytest.raises(SharingError, match="one picture cannot be shared"):
        shards.share(settings | {"output": tmp_path / "one.png"}, one, Work(double, Size(2)), print)
    assert not (tmp_path / "one.png").exists()


def test_each_process_writes_its_own_report_whoever_is_the_last(pictures, tmp_path, monkeypatch):
    """Here the last one has none to write, and one of an earlier run is there."""
    plan, other = plan_jobs(pictures, tmp_path / "out"), []
    settings = {"output": tmp_path / "out", "json_report": tmp_path / "r.json", "seed": 0}
    (tmp_path / "r.json").write_text("{}")
    real = SharedRun.finish

    def finish(run, *what):  # of this process, when another one has finished the run
        monkeypatch.setattr(SharedRun, "finish", real)
        other.append(shards.share(settings | {"json_report": None}, plan, None, print))
        return real(run, *what)

    monkeypatch.setattr(SharedRun, "finish", finish)
    assert shards.share(settings, plan, Work(double, Size(2)), print) == 0 == other[0]
    assert json.loads((tmp_path / "r.json").read_text())["summary"] == f"{COUNT} done"


def test_a_forecast_of_a_large_share_is_told_once(pictures, tmp_path, monkeypatch):
    for rank, count in (("1", 0), ("0", 1), (None, 1)):
        if rank is not None:
            monkeypatch.setenv("RANK", rank)
            monkeypatch.setenv("WORLD_SIZE", "2")
            monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        else:
            monkeypatch.delenv("TORCHELASTIC_RUN_ID")
        plan, said = plan_jobs(pictures, tmp_path / f"out{rank}"), []
        run = SharedRun(tmp_path / f"out{rank}", {})
        with monkeypatch.context() as patch:
            patch.setattr("ldm_dream.upscaling.forecast.LONG_WORK", 100)
            take_part(run, plan, Work(double, Size(2)), lambda results: None, said.append)
        told = [line for line in said if line.startswith(f"{COUNT} pictures of")]
        assert told == said[:count]


def test_after_a_stop_the_rest_is_done(pictures, tmp_path):
    computed = []

    def stops(image):
        computed.append(len(image.pixels) - 8)
        if len(computed) == 3:
            raise KeyboardInterrupt
        return double(image)

    note = folder.write_image
    try:
        note_what_is_written(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            part(tmp_path, stops)
        assert len((tmp_path / "written.txt").read_text().split()) == 2
        results, reports = part(tmp_path)
        assert [r.status for r in results] == ["done"] * COUNT and reports == 1
        is_whole(tmp_path)
    finally:
        folder.write_image = note


def test_other_settings_are_refused(pictures, tmp_path):
    part(tmp_path)
    with pytest.raises(SharingError, match="scale=2, not 4; give the same, another -o, or remove"):
        part(tmp_path, settings={"scale": 4})


LAST_SIGN = 100.0  # seconds


class Clock:
    """Of the process under test: it stands but for sleep, while which another process gives signs."""

    def __init__(self, alive: Path):
        self.now, self.alive = 0.0, alive

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now <= LAST_SIGN:
            os.utime(self.alive, (self.now, self.now))


def test_what_a_silent_machine_had_taken_is_done_when_it_counts_as_lost(
    pictures, tmp_path, monkeypatch
):
    """Its process number says nothing here: its signs of life do."""
    place = tmp_path / "out" / shards.FOLDER
    place.mkdir(parents=True)
    other = "0badcafe-1-0011"
    (place / f"{other}.alive").touch()
    key = SharedRun(tmp_path / "out", {"scale": 2})._key(
        plan_jobs(pictures, tmp_path / "out").jobs[0]
    )
    assert writing.claim_file(place / f"{key}.0", other)
    clock = Clock(place / f"{other}.alive")
    monkeypatch.setattr(shards, "time", clock)
    results, _ = part(tmp_path)
    assert [r.status for r in results] == ["done"] * COUNT
    assert LAST_SIGN + shards.SILENCE <= clock.now < LAST_SIGN + shards.SILENCE + 3 * shards.PAUSE
    assert {path.name for path in place.iterdir()} == {shards.SETTINGS, shards.RESULTS}


def test_signs_of_life_go_on_when_the_disk_is_away_for_a_moment(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shards, "BEAT", 0.01)
    real, touches, again = Path.touch, [], threading.Event()

    def touch(path, *mode):
        touches.append(path)
        if 1 < len(touches) < 4:
            raise OSError(errno.ESTALE, "stale file handle")
        real(path, *mode)
        if len(touches) > 4:
            again.set()

    monkeypatch.setattr(Path, "touch", touch)
    with SharedRun(tmp_path, {}):
        assert again.wait(20)
    assert [record.message.count("stale file handle") for record in caplog.records] == [1]


@pytest.mark.parametrize("content", [b"", bytes(20), b"\xff"])
def test_settings_that_a_crash_left_empty_are_one_sentence(tmp_path, content):
    with SharedRun(tmp_path, {"scale": 2}):
        pass
    settings = tmp_path / shards.FOLDER / shards.SETTINGS
    settings.write_bytes(content)
    with pytest.raises(SharingError, match="settings.json is empty or broken.*; remove it and"):
        SharedRun(tmp_path, {"scale": 2})
    settings.unlink()
    SharedRun(tmp_path, {"scale": 2})


def test_each_process_of_torchrun_takes_its_own_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert shards.device_of_rank("auto") == "auto"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [shards.device_of_rank(name) for name in ("auto", "cpu")] == ["cuda:3", "cpu"]
