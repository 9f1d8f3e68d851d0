"""Kernels by their closed forms, and blur and resizing by numpy and torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ldm_dream.data import blur, taps
from ldm_dream.data.resize import mirrored_index


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------------------------------ kernels

KERNELS = [
    blur.gaussian_kernel(7, (0.2, 0.2)),
    blur.gaussian_kernel(21, (3.0, 0.5), 0.7, 4.0),
    blur.plateau_kernel(13, (2.0, 1.0), -2.0, 0.5),
    blur.sinc_kernel(21, math.pi / 5),
    blur.sinc_kernel(1, math.pi),
    blur.gaussian_kernel(15, (2.0, 2.0)),
]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: f"{len(kernel)}")
def test_a_kernel_sums_to_one_and_is_its_own_point_reflection(kernel):
    assert kernel.dtype == np.float32 and kernel.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1], rtol=1e-5)


def test_a_kernel_far_narrower_than_a_pixel_is_one_pixel():
    for make in (blur.gaussian_kernel, blur.plateau_kernel):
        kernel = blur.trimmed(make(21, (1e-200, 1e-200), 0.3, 4.0))
        assert kernel.tolist() == [[1]]


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("angle", [0.0, 0.6, -2.5])
def test_gaussian_and_plateau_kernels_follow_their_density(angle, beta):
    sigma = (2.5, 0.8)
    # of vectors (x, y)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    precision = np.linalg.inv(turn @ np.diag(np.square(sigma)) @ turn.T)
    gaussian, plateau = np.zeros((9, 9)), np.zeros((9, 9))
    for row in range(9):
        for column in range(9):
            p = np.array([column - 4, row - 4])
            d = (p @ precision @ p) ** beta
            gaussian[row, column], plateau[row, column] = math.exp(-d / 2), 1 / (1 + d)
    np.testing.assert_allclose(
        blur.gaussian_kernel(9, sigma, angle, beta), gaussian / gaussian.sum(), atol=1e-7
    )
    np.testing.assert_allclose(
        blur.plateau_kernel(9, sigma, angle, beta), plateau / plateau.sum(), atol=1e-7
    )


def test_the_sinc_kernel_is_the_fourier_transform_of_a_disc():
    cutoff, steps = 1.9, 801
    line = np.linspace(-math.pi, math.pi, steps)
    inside = np.hypot(*np.meshgrid(line, line)) < cutoff
    waves = np.exp(1j * np.outer(np.arange(-5, 6), line))
    kernel = (waves @ inside @ waves.T).real
    np.testing.assert_allclose(blur.sinc_kernel(11, cutoff), kernel / kernel.sum(), atol=2e-4)


@pytest.mark.parametrize("cutoff", [math.pi / 3, math.pi / 2])
def test_a_wave_passes_the_sinc_filter_below_its_cutoff_and_not_above(cutoff):
    kernel = blur.sinc_kernel(61, cutoff).astype(np.float64)
    x = np.arange(-30, 31)
    response = [(kernel.sum(0) * np.cos(share * cutoff * x)).sum() for share in (0.6, 1.5)]
    assert response[0] == pytest.approx(1, abs=0.1) and response[1] == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: f"{len(kernel)}")
def test_a_kernel_is_a_sum_of_columns_by_rows(kernel):
    columns, rows = taps.separated(kernel)
    assert np.abs(columns.T @ rows - kernel).sum() < taps.MISSING
    assert len(taps.separated(blur.gaussian_kernel(21, (1.7, 1.7)))[0]) == 1


def test_trimming_leaves_out_only_what_weighs_nothing():
    narrow, wide = blur.gaussian_kernel(21, (0.6, 0.6)), blur.sinc_kernel(21, 1.0)
    small = blur.trimmed(narrow)
    assert len(small) < 11 and blur.trimmed(wide) is wide
    missing = narrow.copy()
    edge = (21 - len(small)) // 2
    missing[edge:-edge, edge:-edge] -= small
    assert np.abs(missing).sum() < 1e-5
    assert len(blur.trimmed(blur.gaussian_kernel(21, (0.01, 0.01)))) == 1


# ------------------------------------------------------------------------------------ blur, resizing

SIZES = [(1, 1), (3, 4), (40, 53), (9, 120)]


@pytest.mark.parametrize("size", SIZES)
def test_mirrors_go_on_without_end(size):
    image = noise(1, 3, *size)
    expected = np.pad(image.numpy(), ((0, 0), (0, 0), (10, 10), (10, 10)), mode="symmetric")
    np.testing.assert_array_equal(blur.padded_by_mirrors(image, 10), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", [1, 7, 13, 21])
def test_taps_and_fourier_transform_blur_as_convolution_does(size, side):
    image, kernel = noise(1, 3, *size), noise(side, side).double()
    kernel = kernel + kernel.flip(0, 1)
    kernel /= kernel.sum()
    reach = side // 2
    pads = ((0, 0), (0, 0), (reach, reach), (reach, reach))
    padded = torch.from_numpy(np.pad(image.double().numpy(), pads, mode="symmetric"))
    expected = F.conv2d(padded, kernel.expand(3, 1, side, side), groups=3).float()
    for most_taps in (0, 99):
        found = blur.blur(image, kernel.float(), most_taps)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(1, 1), (17, 60), (40, 53), (41, 120)])
def test_taps_resize_as_torch_does(mode, size):
    image = noise(1, 3, 40, 53)
    rows, columns = (taps.resize_taps(*sides, mode) for sides in zip((40, 53), size))
    expected = F.interpolate(image, size=size, mode=mode)
    torch.testing.assert_close(taps.filtered(image, rows, columns), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(2, 5), (10, 30), (14, 19), (10, 23)])
@pytest.mark.parametrize("sigma", [(2.5, 2.5), (4.0, 0.9)])
def test_blur_and_resizing_in_one_are_one_after_the_other(mode, size, sigma):
    image, kernel = noise(1, 3, 10, 23), blur.gaussian_kernel(21, sigma, 0.5)
    resized = [taps.resize_taps(*sides, mode) for sides in zip((10, 23), size)]
    lines = taps.separated(kernel)
    both = [taps.blurred_first(*each) for each in zip(resized, lines, (10, 23))]
    blurred = blur.blur(image, torch.from_numpy(kernel), 99)
    torch.testing.assert_close(
        taps.filtered(image, *both), taps.filtered(blurred, *resized), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("length", [1, 2, 5])
def test_the_mirror_goes_on_without_end(length):
    expected = np.pad(np.arange(length), 12, mode="symmetric")
    found = mirrored_index(np.arange(-12, length + 12), length)
    assert found.tolist() == expected.tolist()
