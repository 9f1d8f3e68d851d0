"""What is said before a long folder: pixels, bytes and the room for them."""

import shutil

import numpy as np
import pytest

from ldm_dream.data.images import Image, write_image
from ldm_dream.upscaling import forecast as module
from ldm_dream.upscaling.forecast import LONG_WORK, Forecast, forecast, in_bytes
from ldm_dream.upscaling.planning import Job, Naming, plan_jobs
from ldm_dream.upscaling.sizes import Size


def noise(height: int, width: int) -> Image:
    rng = np.random.default_rng(0)
    return Image(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_pixels_and_bytes_are_those_of_the_headers(tmp_path):
    write_image(tmp_path / "in/a.png", noise(30, 40))
    write_image(tmp_path / "in/b.png", noise(50, 20))
    (tmp_path / "in/bad.png").write_text("no picture")
    jobs = plan_jobs(tmp_path / "in", tmp_path / "out").jobs
    found = forecast(jobs, Size(2), skip_existing=False)
    assert (found.pictures, found.pixels, found.results) == (3, 2200, 8800)
    assert found.free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    of_files = sum((tmp_path / "in" / name).stat().st_size for name in ("a.png", "b.png"))
    assert found.size == pytest.approx(4 * of_files)
    as_tif = plan_jobs(tmp_path / "in", tmp_path / "out", naming=Naming(ext="tif")).jobs
    assert forecast(as_tif, Size(2), skip_existing=False).size == 3 * 8800


def test_what_is_there_already_is_not_counted(tmp_path):
    for name in ("in/a.png", "in/b.png", "out/a.png"):
        write_image(tmp_path / name, noise(30, 40))
    jobs = plan_jobs(tmp_path / "in", tmp_path / "out").jobs
    assert forecast(jobs, Size(2), skip_existing=True).pixels == 1200
    write_image(tmp_path / "out/b.png", noise(30, 40))
    assert forecast(jobs, Size(2), skip_existing=True).pictures == 0


def test_of_a_long_folder_only_some_are_looked_at(tmp_path, monkeypatch):
    for number in range(20):
        write_image(tmp_path / f"in/{number:02}.png", noise(8, 8))
    jobs = plan_jobs(tmp_path / "in", tmp_path / "out").jobs
    looked = []
    monkeypatch.setattr(module, "LOOKED_AT", 5)
    monkeypatch.setattr(module, "image_size", lambda path: looked.append(path) or (8, 8))
    assert forecast(jobs, Size(4), skip_existing=False).results == 20 * 64 * 16
    assert len(looked) == 5 and looked[-1].name == "16.png"


def test_it_is_one_line_that_says_when_the_room_is_too_small():
    found = Forecast(120, 34.5e6, 552e6, 1.13e9, 20_300_000_000)
    assert found.is_large and str(found) == (
        "120 pictures of 34.5 megapixels become 552.0 megapixels, about 1.1 GB; "
        "20.3 GB are free there"
    )
    small = Forecast(1, 4e4, 64e4, 2e6, 5 * 10**5)
    assert small.is_large and str(small).endswith(
        "500.0 kB are free there, which may not be enough"
    )
    assert not Forecast(1, 4e4, LONG_WORK, 2e6, None).is_large and in_bytes(12) == "12 bytes"


def test_a_header_is_believed_as_far_as_the_file_can_hold_it(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(bytes(335))
    monkeypatch.setattr(module, "image_size", lambda path: (16000, 16000))
    found = forecast([Job(tmp_path / "a.jpg", tmp_path / "b.jpg")], Size(4), skip_existing=False)
    assert (found.pixels, found.results) == (335_000, 335_000 * 16)
    assert found.size == pytest.approx(335 * 16)
