"""Laws of MATLAB-style bicubic resizing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from ldm_dream.data.images import read_image
from ldm_dream.data.resize import degrade, imresize, imresize_to

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def picture(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def slow_imresize(row: list[float], scale: float) -> list[float]:
    """One row by the textbook: symmetric border, kernel widened by 1 / scale when shrinking, one
    loop an output.
    """

    def cubic(x):
        x = abs(x)
        return (
            1.5 * x**3 - 2.5 * x**2 + 1
            if x <= 1
            else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
            if x < 2
            else 0.0
        )

    def mirrored(k):
        k %= 2 * len(row)
        return row[k if k < len(row) else 2 * len(row) - 1 - k]

    squeeze, out = min(scale, 1), []
    for i in range(math.ceil(len(row) * scale)):
        u = (i + 0.5) / scale - 0.5
        reach = range(math.floor(u - 2 / squeeze) - 1, math.ceil(u + 2 / squeeze) + 2)
        weights = [cubic(squeeze * (u - k)) for k in reach]
        out.append(sum(w * mirrored(k) for w, k in zip(weights, reach)) / sum(weights))
    return out


@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 1 / 4, 0.7, 1.5, 2, 3, 4])
@pytest.mark.parametrize("length", [1, 2, 5, 37])
def test_each_row_follows_the_textbook_for_wide_kernels_too(length, scale):
    """Each row follows the textbook even when the kernel is wider than the picture."""
    row = picture(length)
    expected = torch.tensor(slow_imresize(row.tolist(), scale), dtype=torch.float64)
    torch.testing.assert_close(imresize(row[None], scale)[0], expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(imresize(row[:, None], scale)[:, 0], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("scale", [1 / 8, 1 / 3, 0.9, 2.5])
def test_a_constant_picture_stays_constant_up_to_its_border(scale):
    out = imresize(torch.full((2, 3, 9, 14), 0.3), scale)
    assert out.shape == (2, 3, math.ceil(9 * scale), math.ceil(14 * scale))
    torch.testing.assert_close(out, torch.full_like(out, 0.3))


def test_scale_one_is_the_identity():
    image = picture(3, 7, 11)
    torch.testing.assert_close(imresize(image, 1), image, atol=1e-15, rtol=0)


def test_resizing_commutes_with_mirroring_and_transposing():
    image = picture(3, 16, 24)
    small = imresize(image, 1 / 4)
    torch.testing.assert_close(imresize(image.flip(-1), 1 / 4), small.flip(-1))
    torch.testing.assert_close(imresize(image.mT, 1 / 4), small.mT)


def test_without_antialiasing_shrinking_sees_only_four_samples_a_side():
    image = torch.zeros(1, 32, 32)
    image[0, 0, 0] = 1  # the first output's centre is at 1.5: samples 0..3
    assert imresize(image, 1 / 4, antialias=False)[0, 1:, 1:].abs().max() == 0
    assert imresize(image, 1 / 4)[0, 1, 1].abs() > 0


def test_exact_size_equals_scale_where_the_scale_gives_it():
    image = picture(3, 12, 20)
    torch.testing.assert_close(imresize_to(image, 3, 5), imresize(image, 1 / 4))
    assert imresize_to(image, 17, 5).shape == (3, 17, 5)


def test_interior_agrees_with_torch_antialiased_bicubic():
    image = picture(1, 3, 64, 64)
    other = torch.nn.functional.interpolate(
        image, scale_factor=0.25, mode="bicubic", antialias=True
    )
    torch.testing.assert_close(
        imresize(image, 0.25)[..., 2:-2, 2:-2], other[..., 2:-2, 2:-2], atol=1e-6, rtol=0
    )


def test_gradient_is_that_of_a_linear_map():
    image = picture(1, 6, 9).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: imresize(x, 1 / 3), image)


def test_degrade_is_imresize_within_the_two_roundings_of_matlab():
    hr = (picture(3, 24, 32) * 255).round().to(torch.uint8)
    exact = imresize(hr.double(), 1 / 4).clamp(0, 255)
    lr = degrade(hr, 4)
    assert lr.dtype == torch.uint8
    # the columns pass at most sum |weight| = 1.3 times the first rounding on
    assert (lr - exact).abs().max() <= 0.5 + 0.5 * 1.3


def test_degrade_clips_overshoot_and_scale_one_changes_nothing():
    hr = torch.zeros(1, 16, 16, dtype=torch.uint8)
    hr[..., 8:] = 255
    lr = degrade(hr, 2)
    assert imresize(hr.float(), 1 / 2).max() > 255 and lr.max() == 255 and lr.min() == 0
    assert torch.equal(degrade(hr, 1), hr)


@pytest.mark.parametrize(
    "hr",
    [
        torch.zeros(3, 9, 8, dtype=torch.uint8),
        torch.zeros(3, 8, 8),
        torch.zeros(3, 0, 8, dtype=torch.uint8),
    ],
)
def test_degrade_names_what_it_does_not_take(hr):
    with pytest.raises(ValueError, match="takes uint8 with sides in multiples"):
        degrade(hr, 4)


@pytest.mark.parametrize("scale", [0, -1, math.nan, math.inf])
def test_scales_that_are_no_scale_are_refused(scale):
    with pytest.raises(ValueError, match="not allowed"):
        imresize(torch.zeros(3, 8, 8), scale)


def test_integer_pictures_are_refused_instead_of_truncated():
    with pytest.raises(ValueError, match="floating image"):
        imresize(torch.zeros(3, 8, 8, dtype=torch.uint8), 0.5)


@pytest.mark.skipif(
    not (SHARED / "data/test_set5_set14").is_dir(),
    reason="../shared/data/test_set5_set14 is not here",
)
@pytest.mark.parametrize("name", ["set5_img_003", "set14_img_003", "set14_img_013"])
def test_degrade_equals_the_published_matlab_pictures_inside_the_border(name):
    folder = SHARED / "data/test_set5_set14"
    hr, lr = (
        torch.from_numpy(read_image(folder / kind / f"{name}.png").pixels).permute(2, 0, 1)
        for kind in ("hr", "lr_x4")
    )
    assert torch.equal(degrade(hr, 4)[:, 2:-2, 2:-2], lr[:, 2:-2, 2:-2])
