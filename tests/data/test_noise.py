"""Noise by its moments, in grey levels."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch

from ldm_dream.data import noise
from ldm_dream.data.noise import gaussian_noise, seen_by_count, seen_by_fill


@pytest.fixture
def random():
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=[seen_by_count, seen_by_fill])
def poisson_noise(request):
    return functools.partial(noise.poisson_noise, seen=request.param)


@pytest.mark.parametrize("gray", [False, True])
def test_gaussian_noise_has_its_standard_deviation_and_no_mean(random, gray):
    change = gaussian_noise(torch.full((1, 3, 200, 200), 127.5), 12, gray, random) - 127.5
    assert change.mean().abs() < 0.25 and change.std().item() == pytest.approx(12, rel=0.02)
    assert torch.equal(change[:, 0], change[:, 1]) == gray
    clipped = gaussian_noise(torch.full((1, 3, 9, 9), 255.0), 128, gray, random)
    assert clipped.max() == 255 and clipped.min() >= 0


@pytest.mark.parametrize(("count", "peak"), [(256, 256), (100, 128), (5, 8)])
def test_poisson_noise_has_the_moments_of_counted_photons(poisson_noise, random, count, peak):
    """Mean 0, variance 255 x / peak, third moment 255^2 x / peak^2, of each level x."""
    values = torch.linspace(0, 255, count).round()
    image = values[None, None, :, None].expand(1, 3, count, 4000)
    change = (poisson_noise(image, 0.01, False, random) - image) / 0.01
    middle = count // 2 - (count < 10)  # of five levels the darker middle one: never clipped
    found, x = change[0, :, middle].double(), values[middle].item()
    assert found.mean().abs() < 4 * math.sqrt(255 * x / peak / 12000)
    assert found.var().item() == pytest.approx(255 * x / peak, rel=0.07)
    assert not torch.equal(change[0, 0], change[0, 1])
    assert change[0, :, 0].abs().max() == 0, "no light, no noise"


def test_photons_follow_their_distribution_exactly():
    """What the tables hold, not what is drawn from them."""
    thresholds, values = noise._photons()
    for peak, level in [(256, 255), (256, 3), (64, 128), (1, 255), (2, 0)]:
        row = int(math.log2(peak)) * 256 + level
        cells = slice(row * 256, (row + 1) * 256)
        first = (thresholds[cells].astype(np.int64) - (np.arange(256) - 128) * 2**24) / 2**32
        first = np.where(thresholds[cells] == 2**31 - 1, 1 / 256, first)
        pair = (values.reshape(-1, 2)[cells].astype(np.float64) + level) * peak / 255
        chance = np.bincount(
            pair.round().astype(int).T.ravel(), np.append(first, 1 / 256 - first), 600
        )
        mean = peak * level / 255
        expected = [
            math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) if mean else float(k == 0)
            for k in range(600)
        ]
        np.testing.assert_allclose(chance, expected, atol=1e-8)


def test_a_picture_of_two_levels_has_two_photons_for_white(poisson_noise, random):
    image = torch.tensor([0.0, 255.0]).expand(1, 3, 500, 2)
    change = image - poisson_noise(image, 0.1, False, random)
    # of 25.5 levels each two of them are missing, one, or none; more than two are clipped
    assert set(change[..., 1].div(12.75).round(decimals=3).unique().tolist()) == {0, 1, 2}


def test_grey_poisson_noise_follows_the_luminance(poisson_noise, random):
    """It is alike in all channels, and its variance is that of the luminance."""
    ramp = torch.arange(256.0).expand(300, 256)
    image = torch.stack([ramp * 0, ramp, ramp * 0])[None]  # pure green: luminance 0.587 * ramp
    change = (poisson_noise(image, 0.1, True, random) - image) / 0.1
    assert torch.equal(change[0, 0], change[0, 2]) and change[0, 0].max() > 0
    levels = torch.unique((0.587 * torch.arange(256.0)).round()).numel()
    expected = 255 * 0.587 * 128 / 2 ** math.ceil(math.log2(levels))
    assert change[0, 1, :, 118:138].var().item() == pytest.approx(expected, rel=0.1)


def test_noise_is_a_function_of_its_generator_alone(poisson_noise):
    image = torch.rand(1, 3, 33, 7, generator=torch.Generator().manual_seed(3)) * 255
    for add in (poisson_noise, gaussian_noise):
        first, again, other = (
            add(image, 2.0, False, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
        )
        assert torch.equal(first, again) and not torch.equal(first, other)
