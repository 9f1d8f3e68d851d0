import pytest
import torch

from ldm_dream.upscaling.pictures import COLOR_FIXES, adain, wavelet


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


def test_adain_gives_the_mean_and_deviation_of_the_base():
    base, detail = pictures()
    fixed = adain(3 * base + 0.7 + detail, base)
    torch.testing.assert_close(fixed.mean((2, 3)), base.mean((2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(fixed.std((2, 3)), base.std((2, 3)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", COLOR_FIXES)
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (80, 96)])
def test_every_fix_leaves_a_picture_with_the_colours_of_its_base_alone(name, size):
    base = pictures(*size)[0]
    torch.testing.assert_close(COLOR_FIXES[name](base, base), base, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", COLOR_FIXES)
def test_every_fix_keeps_flat_pictures_finite(name):
    assert COLOR_FIXES[name](torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)).isfinite().all()
