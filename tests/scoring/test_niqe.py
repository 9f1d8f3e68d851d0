"""NIQE against BasicSR's function, and what it cannot score."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_dream.scoring.metrics import MetricError
from ldm_dream.scoring.niqe import niqe
from tests.conftest import SHARED

COFFEE = Path(__file__).resolve().parents[2] / "tools/assets/coffee.png"
# calculate_niqe(rgb[..., ::-1], crop_border) of BasicSR 1.4.2, run with NumPy and SciPy 1.17
BASICSR = {
    ("coffee", 0): 5.352239533149567,
    ("coffee", 4): 5.238871113644755,
    ("coffee, half of it flat", 0): 8.494771285403134,
    ("cloud", 0): 5.998404832639063,
}

BABOON = SHARED / "data/test_set5_set14/hr/set14_img_001.png"
MATLAB = 5.72957338  # of BABOON by the authors' code in MATLAB R2021a, as BasicSR's niqe.py says


def cloud(height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3] whose amplitudes fall as 1 / frequency, as those of photos do."""
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    noise = np.random.default_rng(0).normal(size=(3, height, width))
    spectrum = np.fft.fft2(noise) / np.maximum(np.hypot(rows, columns), 1 / width)
    waves = np.fft.ifft2(spectrum).real
    waves = 128 + 45 * waves / waves.std((1, 2), keepdims=True)
    return waves.clip(0, 255).round().astype(np.uint8).transpose(1, 2, 0)


def picture(name: str) -> np.ndarray:
    if name == "cloud":
        return cloud(200, 300)
    pixels = np.array(Image.open(COFFEE).convert("RGB"))
    if name == "coffee, half of it flat":
        pixels[:, : pixels.shape[1] // 2] = 250
    return pixels


@pytest.mark.parametrize(("case", "expected"), BASICSR.items(), ids=map(str, BASICSR))
def test_niqe_is_basicsrs_but_for_its_float32(case, expected):
    name, border = case
    assert niqe(picture(name), border) == pytest.approx(expected, rel=1e-4)


@pytest.mark.skipif(not BABOON.is_file(), reason=f"{BABOON} is not here")
def test_niqe_of_the_baboon_is_that_of_the_authors_code():
    assert niqe(np.array(Image.open(BABOON))) == pytest.approx(MATLAB, abs=2e-6)


def test_noise_and_flatness_are_worse_than_the_photo():
    photo = picture("coffee")
    noise = np.random.default_rng(0).normal(0, 30, photo.shape)
    noisy = (photo + noise).clip(0, 255).astype(np.uint8)
    small = Image.fromarray(photo)
    blurred = np.array(small.resize((80, 80)).resize(small.size, Image.Resampling.BICUBIC))
    assert niqe(photo) < min(niqe(noisy), niqe(blurred))


def test_too_small_and_flat_pictures_are_named():
    with pytest.raises(MetricError, match="92x292 pixels remain; it needs at least 96x192"):
        niqe(cloud(100, 300), 4)
    with pytest.raises(MetricError, match="-2x2 pixels remain"):
        niqe(cloud(6, 10), 4)
    with pytest.raises(MetricError, match="0 of 6 blocks have texture"):
        niqe(np.full((200, 300, 3), 100, np.uint8))
