import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm_dream.data.resize import imresize_to
from ldm_dream.upscaling.pictures import Source, unpack
from ldm_dream.upscaling.tiling import Pass, Tiles, across, wavefront

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


def whole(x: torch.Tensor):
    """Cuts tiles out of a tensor that is a whole number of times as large as the grid."""

    def of(tiles: Tiles):
        r = x.shape[-1] // tiles.width

        def cut(tile):
            rows, columns = (slice(s.start * r, s.stop * r) for s in (tile.rows, tile.columns))
            return x[tile.picture : tile.picture + 1, :, rows, columns]

        return cut

    return of


def tiled(tiles: Tiles, fn, *inputs: torch.Tensor, batch_size: int = 1) -> torch.Tensor:
    """fn over all tiles, as one whole picture."""
    blend = Pass(tiles, fn, batch_size, len(inputs[0]))
    cuts = [whole(x)(tiles) for x in inputs]
    return torch.cat([blend.band(i, *cuts) for i in range(len(tiles.bands))], -2)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@settings(deadline=None, max_examples=60)
@given(PLANS, st.integers(1, 4))
def test_tiles_of_a_pointwise_function_blend_to_the_untiled_result(tiles, batch_size):
    x = noise(2, 3, tiles.height, tiles.width)
    torch.testing.assert_close(
        tiled(tiles, torch.sin, x, batch_size=batch_size), x.sin(), rtol=0, atol=1e-14
    )


@settings(deadline=None, max_examples=60)
@given(PLANS)
def test_tiles_lie_on_the_window_grid_in_one_shape_with_the_overlap(tiles):
    """Every tile starts on the window grid has the same shape and the promised overlap."""
    seen = []
    ys, xs = torch.meshgrid(torch.arange(tiles.height), torch.arange(tiles.width), indexing="ij")
    tiled(tiles, lambda x: seen.append(x) or x, torch.stack([ys, xs]).double()[None])
    assert len({tile.shape for tile in seen}) == 1
    rows = sorted({int(tile[0, 0, 0, 0]) for tile in seen})
    assert all(row % tiles.align == 0 for row in rows)
    height, width = tiles.shape
    assert max(height, width) <= tiles.size
    assert all(below <= above + height - tiles.overlap for above, below in zip(rows, rows[1:]))
    assert rows[-1] + height == tiles.height


@pytest.mark.parametrize("sides", range(2, 40))
def test_work_grows_as_the_pixels_do(sides):
    """Per pixel, no size takes much more than a large one: tiles do not lie on each other."""
    tiles = Tiles.plan(32 * sides, 32 * sides, tile=264, pad=16, align=32)
    work = sum(
        (tile.rows.stop - tile.rows.start) * (tile.columns.stop - tile.columns.start)
        for i in range(len(tiles.bands))
        for tile in tiles.row(i, 1)
    )
    assert work / (32 * sides) ** 2 < 1.6


@pytest.mark.parametrize("pad, radius", [(8, 6), (16, 12)])
def test_a_look_of_three_eighths_of_the_overlap_is_tiled_exactly(pad, radius):
    """A function that looks three eighths of the overlap far is tiled exactly."""
    tiles = Tiles.plan(96, 72, tile=48, pad=pad, align=8)
    assert tiles.overlap == 2 * pad
    x = noise(1, 1, 96, 72)
    torch.testing.assert_close(tiled(tiles, blur(radius), x), blur(radius)(x), rtol=0, atol=1e-13)


def test_a_function_that_looks_farther_differs_only_inside_the_overlaps():
    tiles = Tiles.plan(64, 64, tile=40, pad=8, align=8)
    error = (tiled(tiles, blur(12), noise(1, 1, 64, 64)) - blur(12)(noise(1, 1, 64, 64))).abs()[
        0, 0
    ]
    assert error[24 - 8 : 40 + 8].max() > 1e-4
    assert error[:12, :12].max() < 1e-13


def test_constant_functions_leave_no_seam_even_when_tiles_disagree():
    """Tiles that answer 0, 1, 2, ... blend without a jump: two neighbouring pixels differ by less
    than a ramp step.
    """
    tiles = Tiles.plan(8, 128, tile=48, pad=16, align=8)
    count = iter(range(100))
    out = tiled(tiles, lambda x: torch.full_like(x, next(count)), noise(1, 1, 8, 128))
    step = out.diff(dim=-1)
    assert step.min() >= 0
    assert step.max() < 1.1 * math.pi / 2 / (tiles.overlap / 4)


def test_inputs_and_output_may_have_finer_grids():
    tiles = Tiles.plan(32, 48, tile=24, pad=4, align=8)
    z, fine = noise(2, 1, 32, 48), noise(2, 1, 64, 96)

    def enlarge(z, fine):
        return F.interpolate(z, scale_factor=4) + F.interpolate(fine, scale_factor=2)

    out = tiled(tiles, enlarge, z, fine, batch_size=3)
    assert out.shape == (2, 1, 128, 192)
    torch.testing.assert_close(out, enlarge(z, fine), rtol=0, atol=1e-13)


def test_a_tile_that_holds_the_picture_changes_no_bit():
    x = noise(1, 3, 24, 40).float()
    tiles = Tiles.plan(24, 40, tile=40, pad=16, align=8)
    assert tiles.shape == (24, 40)
    assert torch.equal(tiled(tiles, torch.tanh, x), x.tanh())


def test_batch_size_does_not_change_which_tiles_are_computed():
    tiles = Tiles.plan(64, 64, tile=32, pad=4, align=8)
    calls = []
    for batch_size in (1, 4, 7):
        tiled(
            tiles, lambda x: calls.append(len(x)) or x, noise(3, 1, 64, 64), batch_size=batch_size
        )
    count = 3 * 3 * 3
    assert calls == [1] * count + [4, 4, 1] * 3 + [7, 2] * 3


def test_halving_ends_above_the_overlap():
    tiles, sizes = Tiles.plan(512, 512, tile=512, pad=16, align=8), []
    while tiles is not None:
        sizes.append(tiles.size)
        assert max(tiles.shape) <= tiles.size
        tiles = tiles.halved()
    assert sizes == [512, 256, 128, 64, 40]


# ---------------------------------------------------------------------------------------- wavefront


@pytest.mark.parametrize("overlap, reach", [(0, 0), (8, 1), (24, 3)])
def test_a_wavefront_gives_the_numbers_of_whole_passes_in_the_memory_of_a_few_bands(overlap, reach):
    tiles = Tiles(128, 40, 32, overlap, 8)
    assert tiles.reach == reach
    x, functions = noise(2, 1, 128, 40), [blur(5), torch.sin, blur(9), torch.cos]
    expected = x
    for fn in functions:
        expected = tiled(tiles, fn, expected)
    alive = []

    def stage(fn):
        blend = Pass(tiles, fn, 3, 2)

        def make(i, bands):
            band = blend.band(i, across(tiles, bands) if bands else whole(x)(tiles))
            alive.append(weakref.ref(band))
            return band

        return make

    made, most = [], 0
    for band in wavefront(tiles, [stage(fn) for fn in functions]):
        made.append(band.clone())
        del band
        most = max(most, sum(ref() is not None for ref in alive))
    assert torch.equal(torch.cat(made, -2), expected)
    assert most <= len(functions) * (reach + 1) < len(alive) / 2


def test_more_steps_than_python_nests_calls_are_no_matter():
    tiles = Tiles(24, 8, 16, 8, 8)
    stages = [lambda i, bands: bands[0] + 1 if bands else i] * 3000
    assert list(wavefront(tiles, stages)) == [2999, 3000]


# ------------------------------------------------------------------------------------------- source


@pytest.mark.parametrize("context", [0, 4])
@pytest.mark.parametrize("height, width", [(1, 1), (7, 50), (32, 33), (64, 32)])
def test_the_source_is_mirrored_on_all_sides_up_to_the_multiple(height, width, context):
    x = torch.rand(1, 3, height, width)
    source = Source(unpack(x), context, 32)
    assert all(side % 32 == 0 for side in source.size)
    assert all(0 <= side - 2 * context - n < 32 for side, n in zip(source.size, (height, width)))
    padded, lr = source.whole(source.size), x * 2 - 1
    inside = padded[..., context : context + height, context : context + width]
    assert torch.equal(inside, lr)
    for flipped, axis in ((inside.flip(-2), -2), (inside.flip(-1), -1)):
        n = min(context, inside.shape[axis])
        if not n:
            continue
        before, mirror = padded.narrow(axis, context - n, n), flipped.narrow(axis, -n, n)
        across_axis = -1 if axis == -2 else -2
        before = before.narrow(across_axis, context, inside.shape[across_axis])
        assert torch.equal(before, mirror)


def test_parts_of_the_enlarged_source_are_its_parts_bit_for_bit():
    source = Source(unpack(torch.rand(2, 3, 30, 20)), 3, 4)
    for size in ((144, 112), (36, 28), (50, 11)):
        whole = imresize_to(source.whole(source.size), *size)
        rows, columns = slice(7, size[0] - 9), slice(2, size[1] - 3)
        assert torch.equal(source.part(size, rows, columns), whole[..., rows, columns])
        assert torch.equal(source.one(1).part(size, rows, columns), whole[1:, :, rows, columns])
