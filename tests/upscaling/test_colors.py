import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ldm_dream.upscaling.colors import COLOR_FIXES, around, no_new_colors, wavelet


def fix(name: str, sr: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    return COLOR_FIXES[name](lambda: [(sr, base)])(sr, base)


def pictures(height=80, width=96):
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(-0.5, 0.5, width).expand(1, 3, height, width) * torch.tensor(
        [1, -1, 0.5]
    ).view(1, 3, 1, 1)
    detail = torch.randn(1, 3, height, width, generator=generator) * 0.1
    return ramp, detail - detail.mean((2, 3), keepdim=True)


def test_wavelet_removes_a_colour_cast_and_keeps_the_picture():
    base, detail = pictures()
    cast = torch.tensor([0.3, -0.2, 0.1]).view(1, 3, 1, 1)
    torch.testing.assert_close(
        wavelet(base + detail + cast, base + detail), base + detail, rtol=0, atol=1e-6
    )


def test_wavelet_keeps_detail_and_takes_coarse_colours():
    base, detail = pictures()
    fixed = wavelet(detail, base)  # a result with the right detail and none of the colours
    assert (fixed - (base + detail)).abs().mean() < 0.03
    assert (detail - (base + detail)).abs().mean() > 0.1


def coarse_band(x: torch.Tensor) -> torch.Tensor:
    """What a result that is black everywhere takes of x, before its chroma is looked at."""
    return wavelet(torch.zeros_like(x), x.expand(-1, 3, -1, -1))[:, :1]


def test_the_coarse_band_is_a_triangle_over_the_means_of_blocks():
    x = torch.randn(1, 1, 88, 100, generator=torch.Generator().manual_seed(0))
    means = np.pad(F.avg_pool2d(x, 4).numpy(), ((0, 0), (0, 0), (7, 7), (7, 7)), "symmetric")
    taps = 1 - torch.arange(-7, 8).abs() / 8
    low = F.conv2d(torch.from_numpy(means), (taps * taps[:, None] / 64).view(1, 1, 15, 15))
    wanted = F.interpolate(low, scale_factor=4, mode="bilinear")
    torch.testing.assert_close(coarse_band(x), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("period", [8, 16, 32, 64, 128])
def test_the_coarse_band_is_about_that_of_the_a_trous_transform(period):
    """Away from the border, where each level would have one of its own."""
    x = (torch.arange(256) * 2 * torch.pi / period).sin().expand(1, 1, 96, 256)
    low = x
    for level in range(5):
        before, after = (low.roll(way * 2**level, -1) for way in (1, -1))
        low = 0.25 * before + 0.5 * low + 0.25 * after
    inner = (..., slice(32, -32))
    torch.testing.assert_close(coarse_band(x)[inner], low[inner], rtol=0, atol=0.005)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (90, 101), (91, 130)])
def test_a_part_is_fixed_as_in_the_whole(size):
    """Wherever it begins and ends, from what lies around it alone."""
    sr, base = torch.randn(2, 1, 3, *size, generator=torch.Generator().manual_seed(0))
    whole = wavelet(sr, base)
    for begin, end in ((0, 1), (37, 58), (48, size[0])):
        begin, end = min(begin, size[0] - 1), min(end, size[0])
        rows = around(slice(begin, end), size[0])
        part = wavelet(sr[..., rows, :], base[..., rows, :])
        assert torch.equal(
            part[..., begin - rows.start : end - rows.start, :], whole[..., begin:end, :]
        )


def test_the_border_of_the_coarse_band_follows_no_single_row():
    """A bright last row moves what is mirrored there by its share, not by half."""
    base, _ = pictures()
    base[..., -1, :] += 0.5
    low = wavelet(torch.zeros_like(base), base) - wavelet(torch.zeros_like(base), pictures()[0])
    assert low.abs().max() < 0.1


def test_adain_gives_the_mean_and_deviation_of_the_base():
    base, detail = pictures()
    detail = detail.mean(1, keepdim=True)
    fixed = fix("adain", 3 * base + 0.7 + detail, base)
    torch.testing.assert_close(fixed.mean((2, 3)), base.mean((2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(fixed.std((2, 3)), base.std((2, 3)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", COLOR_FIXES)
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (80, 96)])
def test_every_fix_leaves_a_picture_with_the_colours_of_its_base_alone(name, size):
    base = pictures(*size)[0]
    torch.testing.assert_close(fix(name, base, base), base, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", COLOR_FIXES)
def test_every_fix_keeps_flat_pictures_finite(name):
    assert fix(name, torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)).isfinite().all()


def test_adain_measures_part_by_part_what_the_whole_has():
    base, detail = pictures()
    sr = 3 * base + 0.7 + detail
    parts = [
        (x[..., :30, :], y[..., :30, :]) for x, y in [(sr, base), (sr.flip(-2), base.flip(-2))]
    ]
    parts += [(sr[..., 30:50, :], base[..., 30:50, :])]
    made = COLOR_FIXES["adain"](lambda: parts)(sr, base)
    torch.testing.assert_close(made, fix("adain", sr, base), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["wavelet", "adain"])
def test_grey_stays_grey_and_keeps_its_brightness(name):
    base, detail = (x.mean(1, keepdim=True).expand(-1, 3, -1, -1) for x in pictures())
    fringed = base + detail + torch.randn(1, 3, 80, 96) * 0.2
    fixed = fix(name, fringed, base)
    assert (fixed.amax(1) - fixed.amin(1)).max() < 1e-6
    assert (no_new_colors(fringed, base) - base).abs().mean() > 0.05


def test_a_grey_corner_stays_grey_beside_colours_that_stay():
    base = torch.zeros(1, 3, 40, 80)
    base[:, :, :, 40:] = torch.tensor([0.8, -0.6, 0.1]).view(3, 1, 1) * torch.randn(40, 40).sign()
    sr = base + torch.rand(1, 3, 40, 80) * 0.1
    fixed = no_new_colors(sr, base)
    grey = fixed[..., : 40 - 9]
    assert (grey.amax(1) - grey.amin(1)).max() < 1e-6
    torch.testing.assert_close(fixed[..., 50:], sr[..., 50:])
