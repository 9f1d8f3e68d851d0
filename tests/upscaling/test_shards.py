"""A folder of pictures shared among processes, one of which is killed."""

import errno
import json
import os
import signal
import threading
import time
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


def work(tmp: Path, victim: bool) -> None:
    """A worker; a victim is killed while it computes its second picture."""
    shards.PAUSE, computed = 0.1, []
    note_what_is_written(tmp)

    def upscale(image: Image) -> Image:
        computed.append(image)
        if victim and len(computed) == 2:
            time.sleep(0.5)  # the first is written meanwhile
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.1)
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
    computed = []

    def upscale(picture):
        computed.append(picture)
        if is_victim and len(computed) == 2:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.1)
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
    assert part(tmp_path, upscale, say=said.append) == (results, 0)
    assert len(computed) == 7 and said[COUNT:] == [
        f"all was done before; remove {tmp_path / 'out' / shards.FOLDER} to do it anew."
    ]
    write_image(pictures / "8.png", Image(np.zeros((3, 3, 3), np.uint8)))
    more, reports = part(tmp_path, upscale)
    assert more[:-1] == results and more[-1].status == "done"
    assert len(computed) == 8 and reports == 1


def test_the_last_process_writes_the_report_and_a_failure_is_status_1(pictures, tmp_path):
    (pictures / "7.png").write_text("no picture")
    plan, said = plan_jobs(pictures, tmp_path / "out"), []
    settings = {"output": tmp_path / "out", "json_report": tmp_path / "r.json", "seed": 0}
    assert shards.share(settings, plan, Work(double, Size(2)), said.append) == 1
    report = json.loads((tmp_path / "r.json").read_text())
    assert said[-1] == report["summary"] == "7 done, 1 failed" and len(said) == COUNT + 1
    assert [p["status"] for p in report["pictures"]] == ["done"] * 7 + ["failed"]

    (tmp_path / "r.json").unlink()
    again = settings | {"device": "cpu"}
    assert shards.share(again, plan, Work(double, Size(2)), said.append) == 1
    assert not (tmp_path / "r.json").exists() and said[-1].startswith("all was done before")

    one = plan_jobs(pictures / "0.png", tmp_path / "one.png")
    with pytest.raises(SharingError, match="one picture cannot be shared"):
        shards.share(settings | {"output": tmp_path / "one.png"}, one, Work(double, Size(2)), print)
    assert not (tmp_path / "one.png").exists()


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
    monkeypatch.setattr(shards, "PAUSE", 0.05)
    monkeypatch.setattr(shards, "SILENCE", 0.6)
    beats = [threading.Timer(0.2 * n, (place / f"{other}.alive").touch) for n in (1, 2, 3)]
    for beat in beats:
        beat.start()
    begun = time.monotonic()
    results, _ = part(tmp_path)
    assert [r.status for r in results] == ["done"] * COUNT
    assert time.monotonic() - begun > 1.1  # 0.6 s of signs, then of silence
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
