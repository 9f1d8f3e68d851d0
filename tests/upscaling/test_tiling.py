import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm_dream.sampler import seeded
from ldm_dream.upscaling.tiling import Tiles
from ldm_dream.upscaling.upscaler import mirrored

PLANS = st.builds(
    lambda h, w, tile, pad, align: Tiles.plan(h * align, w * align, tile, pad, align),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 40),
    st.integers(0, 12),
    st.sampled_from([1, 2, 4, 8]),
)


def blur(radius: int):
    """A function that looks `radius` pixels around itself; the border is repeated as in a picture."""
    kernel = torch.rand(
        1,
        1,
        2 * radius + 1,
        2 * radius + 1,
        generator=torch.Generator().manual_seed(0),
        dtype=torch.float64,
    )
    return lambda x: F.conv2d(F.pad(x, (radius,) * 4, mode="replicate"), kernel / kernel.sum())


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@settings(deadline=None, max_examples=60)
@given(PLANS, st.integers(1, 4))
def test_tiles_of_a_pointwise_function_blend_to_the_untiled_result(tiles, batch_size):
    x = noise(2, 3, tiles.height, tiles.width)
    torch.testing.assert_close(
        tiles.map(torch.sin, x, batch_size=batch_size), x.sin(), rtol=0, atol=1e-14
    )


@settings(deadline=None, max_examples=60)
@given(PLANS)
def test_every_tile_starts_on_the_window_grid_has_the_same_shape_and_the_promised_overlap(tiles):
    seen = []
    ys, xs = torch.meshgrid(torch.arange(tiles.height), torch.arange(tiles.width), indexing="ij")
    tiles.map(lambda x: seen.append(x) or x, torch.stack([ys, xs]).double()[None])
    assert len({tile.shape for tile in seen}) == 1
    rows = sorted({int(tile[0, 0, 0, 0]) for tile in seen})
    assert all(row % tiles.align == 0 for row in rows)
    assert all(below <= above + tiles.size - tiles.overlap for above, below in zip(rows, rows[1:]))


@pytest.mark.parametrize("pad, radius", [(8, 6), (16, 12)])
def test_a_function_that_looks_three_eighths_of_the_overlap_far_is_tiled_exactly(pad, radius):
    tiles = Tiles.plan(96, 72, tile=48, pad=pad, align=8)
    assert tiles.overlap == 2 * pad
    x = noise(1, 1, 96, 72)
    torch.testing.assert_close(tiles.map(blur(radius), x), blur(radius)(x), rtol=0, atol=1e-13)


def test_a_function_that_looks_farther_differs_only_inside_the_overlaps():
    tiles = Tiles.plan(64, 64, tile=40, pad=8, align=8)
    error = (tiles.map(blur(12), noise(1, 1, 64, 64)) - blur(12)(noise(1, 1, 64, 64))).abs()[0, 0]
    assert error[24 - 8 : 40 + 8].max() > 1e-4
    assert error[:12, :12].max() < 1e-13


def test_constant_functions_leave_no_seam_even_when_tiles_disagree():
    """Tiles that answer 0, 1, 2, ... blend without a jump: two neighbouring pixels differ by less
    than a ramp step.
    """
    tiles = Tiles.plan(8, 128, tile=48, pad=16, align=8)
    count = iter(range(100))
    out = tiles.map(lambda x: torch.full_like(x, next(count)), noise(1, 1, 8, 128))
    step = out.diff(dim=-1)
    assert step.min() >= 0
    assert step.max() < 1.1 * math.pi / 2 / (tiles.overlap / 4)


def test_inputs_and_output_may_have_finer_grids():
    tiles = Tiles.plan(32, 48, tile=24, pad=4, align=8)
    z, fine = noise(2, 1, 32, 48), noise(2, 1, 64, 96)

    def enlarge(z, fine):
        return F.interpolate(z, scale_factor=4) + F.interpolate(fine, scale_factor=2)

    out = tiles.map(enlarge, z, fine, batch_size=3)
    assert out.shape == (2, 1, 128, 192)
    torch.testing.assert_close(out, enlarge(z, fine), rtol=0, atol=1e-13)


def test_a_tile_that_holds_the_picture_changes_no_bit():
    x = noise(1, 3, 24, 40).float()
    tiles = Tiles.plan(24, 40, tile=40, pad=16, align=8)
    assert tiles.is_whole
    assert torch.equal(tiles.map(torch.tanh, x), x.tanh())


def test_batch_size_does_not_change_which_tiles_are_computed():
    tiles = Tiles.plan(64, 64, tile=32, pad=4, align=8)
    calls = []
    for batch_size in (1, 4, 7):
        tiles.map(lambda x: calls.append(len(x)) or x, noise(3, 1, 64, 64), batch_size=batch_size)
    count = 3 * 3 * 3
    assert calls == [1] * count + [4] * 6 + [3] + [7] * 3 + [6]


def test_halving_ends_above_the_overlap():
    tiles, sizes = Tiles.plan(512, 512, tile=512, pad=16, align=8), []
    while tiles is not None:
        sizes.append(tiles.size)
        tiles = tiles.halved()
    assert sizes == [512, 256, 128, 64, 40]


def test_noise_depends_on_seed_and_step_alone():
    like = torch.zeros(2, 3, 8, 8)
    field = seeded(5, like)
    assert torch.equal(field(1), seeded(5, like.double()[:1])(1).float().expand_as(like))
    assert torch.equal(field(1)[0], field(1)[1])
    fields = [seeded(seed, like)(k) for seed in (0, 1) for k in (0, 1)]
    assert all(not torch.equal(a, b) for i, a in enumerate(fields) for b in fields[:i])


def test_noise_is_standard_normal_and_its_steps_are_uncorrelated():
    field = seeded(0, torch.zeros(1, 4, 128, 128))
    a, b = field(0).flatten(), field(1).flatten()
    assert abs(a.mean()) < 0.02 and abs(a.std() - 1) < 0.02
    assert abs((a * b).mean()) < 0.02


@pytest.mark.parametrize("height, width", [(1, 1), (7, 50), (32, 33), (64, 32)])
def test_padding_mirrors_and_keeps_the_picture(height, width):
    x = noise(1, 3, height, width)
    padded = mirrored(x, 32)
    assert padded.shape[-2] % 32 == 0 and padded.shape[-1] % 32 == 0
    assert padded.shape[-2] - height < 32 and padded.shape[-1] - width < 32
    assert torch.equal(padded[..., :height, :width], x)
    if padded.shape[-1] > width:
        assert torch.equal(padded[..., :height, width], x[..., width - 1])
