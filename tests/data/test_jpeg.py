"""A JPEG is whole, or it is refused: no cut is read as whole with wrong pixels."""

import io
import re

import numpy as np
import pytest
from PIL import Image as PillowImage

from ldm_dream.data.images import ImageError, read_image

END = b"\xff\xd9"
KINDS = {
    "baseline": ("RGB", {}),
    "gray": ("L", {}),
    "cmyk": ("CMYK", {}),
    "progressive": ("RGB", {"progressive": True}),
    "gray progressive": ("L", {"progressive": True}),
    "restarts": ("RGB", {"restart_marker_blocks": 1}),
}


def photo(kind: str = "baseline") -> bytes:
    """A small one with some noise, so that its last rows are not empty."""
    mode, options = KINDS[kind]
    y, x = np.mgrid[0:24, 0:40]
    waves = np.dstack([128 + 60 * np.sin(x / 5 + i) + 40 * np.cos(y / 7) for i in range(3)])
    noisy = (waves + np.random.default_rng(0).normal(0, 8, waves.shape)).clip(0, 255)
    buffer = io.BytesIO()
    PillowImage.fromarray(noisy.astype(np.uint8)).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def read(tmp_path, data: bytes) -> np.ndarray:
    (tmp_path / "x.jpg").write_bytes(data)
    return read_image(tmp_path / "x.jpg").pixels


@pytest.mark.parametrize("kind", KINDS)
def test_no_cut_is_read_as_whole_with_wrong_pixels(tmp_path, kind, caplog):
    """Cut and left open, cut and closed again; those that lack only the end marker are read."""
    whole = photo(kind)
    pixels = read(tmp_path, whole)
    scans = [found.start() for found in re.finditer(b"\xff\xda", whole)]
    cuts = {*range(scans[0], len(whole) - 2, 29), *range(len(whole) - 12, len(whole)), *scans}
    for cut in sorted(cuts):
        for data in (whole[:cut], whole[:cut] + END):
            caplog.clear()
            try:
                found = read(tmp_path, data)
            except ImageError as error:
                assert cut < len(whole) - 2, error
            else:
                assert np.array_equal(found, pixels), f"cut at {cut} of {len(whole)}"
    caplog.clear()
    assert np.array_equal(read(tmp_path, whole[:-2]), pixels)
    assert "end marker is missing, but every pixel is there" in caplog.text


def test_warnings_that_cost_no_pixel_are_said_and_the_picture_is_read(tmp_path, caplog):
    whole = photo()
    pixels = read(tmp_path, whole)
    jfif, scan = whole.index(b"JFIF\0"), whole.index(b"\xff\xda")
    odd = bytearray(whole)
    odd[jfif + 5] = 9  # version 9 of JFIF
    band = bytearray(whole)
    band[scan + 4 + 2 * 3 + 2] = 0  # last coefficient of a sequential scan
    padded = photo("progressive")[:-2] + b"\0" * 50 + END
    assert np.array_equal(read(tmp_path, padded), read(tmp_path, photo("progressive")))
    assert "zeros stand before its end marker" in caplog.text
    for data, says in (
        (bytes(odd), "its header is unusual"),
        (bytes(band), "its header is unusual"),
    ):
        caplog.clear()
        assert np.array_equal(read(tmp_path, data), pixels)
        assert says in caplog.text and len(caplog.records) == 1
    caplog.clear()
    assert np.array_equal(read(tmp_path, whole + b"a film behind it" + whole), pixels)
    assert not caplog.records


def test_coded_data_that_is_left_over_is_refused(tmp_path):
    with pytest.raises(ImageError, match="extraneous bytes"):
        read(tmp_path, photo("progressive")[:-2] + b"junk that was coded data" + END)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.replace(b"\xff\xc0", b"\xff\xc9", 1), "a rare kind"),
        (lambda d: d.replace(b"\xff\xda", b"\xff\xc0", 1), "broken"),
        (lambda d: d[:2] + END, "broken"),
        (lambda d: d[: d.index(b"\xff\xda") + 3], "broken"),
    ],
)
def test_a_damaged_jpeg_is_one_sentence(tmp_path, change, says):
    with pytest.raises(ImageError, match=says) as caught:
        read(tmp_path, change(photo()))
    assert "x.jpg" in str(caught.value) and str(caught.value).isprintable()


def test_more_segments_than_any_picture_has_are_refused(tmp_path):
    whole = photo()
    segment = b"\xff\xef\0\2"
    assert read(tmp_path, whole[:2] + segment * 1000 + whole[2:]).shape == (24, 40, 3)
    with pytest.raises(ImageError, match="more than 10000 segments"):
        read(tmp_path, whole[:2] + segment * 10000 + whole[2:])


def test_a_file_too_small_for_its_pixels_is_refused_by_its_header(tmp_path, monkeypatch):
    lie = bytearray(photo())
    at = lie.index(b"\xff\xc0") + 5
    lie[at : at + 4] = (16000).to_bytes(2, "big") * 2
    with pytest.raises(ImageError, match="bytes cannot hold 16000x16000 pixels"):
        read(tmp_path, bytes(lie))
