"""JPEG in torch against libjpeg, and libjpeg's result against another build of it."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest
import pyvips
import torch
import torch.nn.functional as F

from ldm_dream.data.jpeg_loss import by_libjpeg, by_torch, quality_tables


def picture(height: int, width: int, roughness: float = 8.0) -> torch.Tensor:
    """Slow waves of colour with noise of `roughness` levels."""
    random = torch.Generator().manual_seed(height)
    coarse = torch.rand(1, 3, height // 9 + 2, width // 9 + 2, generator=random) * 255
    waves = F.interpolate(coarse, size=(height, width), mode="bicubic")
    return (waves + roughness * torch.randn(waves.shape, generator=random)).clamp(0, 255)


@pytest.mark.parametrize("quality", [30, 95])
def test_jpeg_loses_what_libjpeg_loses(quality):
    image = picture(37, 51, 0)
    found, pixels = by_libjpeg(image, quality), image.round()
    data = pyvips.Image.new_from_array(
        pixels[0].permute(1, 2, 0).contiguous().numpy().astype(np.uint8)
    ).jpegsave_buffer(Q=quality, subsample_mode="on")
    other = torch.from_numpy(pyvips.Image.new_from_buffer(data, "").numpy()).permute(2, 0, 1)
    assert (found[0] - other).abs().max() <= 2
    assert (found - pixels).abs().mean() > 0.2


@pytest.mark.parametrize("quality", [1, 30, 49, 50, 95, 100])
def test_the_tables_are_those_of_libjpeg(quality):
    file = io.BytesIO()
    PIL.Image.new("RGB", (8, 8)).save(file, "jpeg", quality=quality)
    written = PIL.Image.open(file).quantization
    np.testing.assert_array_equal(quality_tables(quality), [written[0], written[1]])


@pytest.mark.parametrize("quality", [10, 30, 50, 75, 95, 100])
@pytest.mark.parametrize(
    "size", [(64, 64), (37, 51), (120, 133), (8, 8), (1, 1), (5, 3), (2, 34), (17, 9), (96, 4)]
)
def test_torch_computes_what_libjpeg_does(quality, size):
    """Within 0.3 grey levels on average, where there are blocks enough to average; where a
    coefficient falls to the other side, that wave of its block differs by one step of the table.
    """
    image = picture(*size)
    found = by_torch(image, torch.from_numpy(quality_tables(quality)))
    difference = (found - by_libjpeg(image, quality)).abs()
    assert difference.mean() < (0.3 if min(size) >= 64 else 2)
    assert difference.max() <= 24 and torch.equal(found, found.round())
    assert found.min() >= 0 and found.max() <= 255


@pytest.mark.parametrize("level", [0.0, 100.0, 255.0])
def test_a_grey_plane_stays_as_libjpeg_leaves_it(level):
    image = torch.full((1, 3, 21, 30), level)
    found = by_torch(image, torch.from_numpy(quality_tables(60)))
    assert torch.equal(found, by_libjpeg(image, 60))
