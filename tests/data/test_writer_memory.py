"""Beside the picture that is written only a few rows are in memory, in every kind."""

import sys
from pathlib import Path

import numpy as np
import pytest
from processes import in_a_new_process

from ldm_dream.data import writer
from ldm_dream.data.images import Image, write_image
from ldm_dream.data.metadata import Metadata

HEIGHT, WIDTH = 8000, 1000
CASES = {
    "x.jpg": Image,
    "x.png": lambda pixels: Image(pixels, metadata=Metadata({}, texts=((b"tEXt", b"a\0b"),))),
    "x.tif": Image,
    "gray.jpg": lambda pixels: Image(pixels, was_gray=True),
    "alpha.tif": lambda pixels: Image(pixels, pixels[..., 0]),
    "deep.jpg": lambda pixels: Image(pixels.view(np.uint16)),
}


def most_beside_it(path: Path) -> float:
    """Resident bytes at the most while a picture is written, beyond those before, per byte of it."""
    writer.LARGE_JPEG = 2**20
    pixels = np.random.default_rng(0).integers(
        0, 256, (HEIGHT, WIDTH, 3 * (1 + path.name.startswith("deep"))), np.uint8
    )
    image = CASES[path.name](pixels)
    write_image(path, Image(image.pixels[:300]))  # what is loaded once
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = most_resident()
    write_image(path, image)
    return (most_resident() - before) / image.pixels.nbytes


def most_resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", CASES)
def test_a_picture_is_written_without_a_second_one(tmp_path, name):
    # what is not as it is stored is copied once, in the depth of the file
    copies = {"gray.jpg": 1 / 3, "alpha.tif": 4 / 3, "deep.jpg": 1 / 2}
    most = in_a_new_process(most_beside_it, tmp_path / name)
    assert most < copies.get(name, 0) + 0.5
