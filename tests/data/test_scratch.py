"""A large array lies in a file: it is what it was written, and the process holds little of it."""

import gc
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from processes import in_a_new_process

from ldm_dream.data import scratch, writer
from ldm_dream.data.images import Image, ImageError, read_image, write_image
from ldm_dream.data.scratch import let_go, room

SHAPE = (4000, 2000, 3)


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


@pytest.fixture
def in_file(monkeypatch, tmp_path):
    monkeypatch.setattr(scratch, "IN_FILE_FROM", 2**20)
    monkeypatch.setattr(scratch, "_folder", lambda: str(tmp_path))


def test_what_is_let_go_of_is_there_and_not_in_memory(in_file, tmp_path):
    array = room(SHAPE, np.dtype(np.uint8))
    before = resident()
    for top in range(0, SHAPE[0], 100):
        array[top : top + 100] = top // 100
        let_go(array)
    assert resident() - before < array.nbytes / 4
    assert array[::100, 0, 0].tolist() == list(range(40)) and array[99].max() == 0
    assert not list(tmp_path.iterdir()), "the file has no name"


def test_small_arrays_are_in_memory(tmp_path):
    array = room((3, 4), np.dtype(np.uint16))
    let_go(array)
    assert array.shape == (3, 4) and array.dtype == np.uint16 and array.flags.owndata


def test_the_file_ends_with_the_array(in_file, tmp_path):
    def files() -> int:  # only ours: what earlier tests left open may close at any time
        open_files = map(os.path.realpath, Path("/proc/self/fd").iterdir())
        return sum(file.startswith(str(tmp_path)) for file in open_files)

    array = room(SHAPE, np.dtype(np.uint8))
    assert files() == 1  # of the mapping
    del array
    gc.collect()
    assert files() == 0


def test_a_disk_without_place_is_one_sentence(in_file, monkeypatch, tmp_path, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    says = (
        r"^the result takes 0\.0 GB, for which this machine has no place; ask for a smaller one\.$"
    )
    with pytest.raises(ImageError, match=says):
        room(SHAPE, np.dtype(np.uint8))
    assert str(tmp_path) in caplog.text and "No space" in caplog.text and "TMPDIR" in caplog.text


def test_a_temporary_folder_that_was_named_is_taken(monkeypatch, tmp_path):
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(scratch, "_FOLDER", str(tmp_path))
    assert scratch._folder() == str(tmp_path)
    (named := tmp_path / "named").mkdir()
    monkeypatch.setenv("TMPDIR", str(named))
    monkeypatch.setattr(scratch.tempfile, "tempdir", None)
    assert scratch._folder() == str(named)
    monkeypatch.delenv("TMPDIR")
    monkeypatch.setattr(scratch, "_FOLDER", str(tmp_path / "gone"))
    assert Path(scratch._folder()).is_dir()


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "gray.tif", "alpha.png", "deep.webp"])
def test_a_picture_in_a_file_is_written_as_from_memory(in_file, tmp_path, name):
    shape, deep = (700, 500, 3), name.startswith("deep")
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8).astype(np.uint16) * 257
    pixels = pixels if deep else pixels.astype(np.uint8)
    held = room(shape, pixels.dtype)
    held[:] = pixels
    alpha = pixels[..., 0] if name.startswith("alpha") else None
    image = Image(pixels, alpha, was_gray=name.startswith("gray"))
    write_image(tmp_path / f"a-{name}", image)
    write_image(tmp_path / f"b-{name}", replace(image, pixels=held))
    assert (tmp_path / f"a-{name}").read_bytes() == (tmp_path / f"b-{name}").read_bytes()
    assert read_image(tmp_path / f"b-{name}").pixels.shape == shape


def most_while_written(folder: Path) -> float:
    """Resident bytes at the most while a picture in a file is written, per byte of it."""
    scratch.IN_FILE_FROM, scratch._folder = 2**20, lambda: str(folder)
    writer.LARGE_JPEG = 2**20
    array = room((12000, 1000, 3), np.dtype(np.uint8))
    array[:] = np.random.default_rng(0).integers(0, 256, (1000, 3), np.uint8)
    write_image(folder / "x.jpg", Image(array[:300]))  # what is loaded once
    let_go(array)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = resident()
    write_image(folder / "x.jpg", Image(array))
    lines = Path("/proc/self/status").read_text().splitlines()
    most = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return (most - before) / array.nbytes


def test_a_picture_in_a_file_is_written_from_there(tmp_path):
    assert in_a_new_process(most_while_written, tmp_path) < 0.3
