"""Laws of blind degradation: each block by its own definition, the pipeline by what a sample may
depend on.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import pyvips
import torch

from ldm_dream.config.data import BlindConfig, DataConfig, FirstOrder, SecondOrder
from ldm_dream.data import blind
from ldm_dream.data.blind import degrade_blind
from ldm_dream.data.images import Image, read_image, write_image
from ldm_dream.data.pairs import (
    JPEG_BLOCK,
    MARGIN,
    Batch,
    Draw,
    PairDataset,
    Request,
    _window,
    to_float,
)
from ldm_dream.data.resize import degrade
from ldm_dream.data.validation import validation_pairs
from ldm_dream.training.latents import LatentDataset

CLEAN = {
    "blur_prob": 0,
    "resize_weights": (0, 0, 1),
    "gaussian_noise_prob": 1,
    "gaussian_sigma": (0, 0),
    "jpeg_quality": (100, 100),
}
HARMLESS = BlindConfig(
    first=FirstOrder(**CLEAN), second=SecondOrder(**CLEAN), second_order_prob=0, final_sinc_prob=0
)


@pytest.fixture
def random():
    return np.random.default_rng(0)


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def smooth(height: int, width: int) -> np.ndarray:
    """uint8 [H,W,3]: slow waves without symmetry, so that a shift or turn of one LR pixel shows."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + y / 21), np.sin(y / 11 - x / 33), np.cos((x + y) / 15)]
    return (127.5 + 120 * np.stack(waves, -1)).astype(np.uint8)


# ------------------------------------------------------------------------------------------ kernels

KERNELS = [
    blind.gaussian_kernel(7, (0.2, 0.2)),
    blind.gaussian_kernel(21, (3.0, 0.5), 0.7, 4.0),
    blind.plateau_kernel(13, (2.0, 1.0), -2.0, 0.5),
    blind.sinc_kernel(21, math.pi / 5),
    blind.sinc_kernel(1, math.pi),
    blind.identity_kernel(9),
]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: f"{len(kernel)}")
def test_a_kernel_sums_to_one_and_is_its_own_point_reflection(kernel):
    assert kernel.dtype == torch.float32 and kernel.sum().item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(kernel, kernel.flip(0, 1))


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
        blind.gaussian_kernel(9, sigma, angle, beta), gaussian / gaussian.sum(), atol=1e-7
    )
    np.testing.assert_allclose(
        blind.plateau_kernel(9, sigma, angle, beta), plateau / plateau.sum(), atol=1e-7
    )


def test_the_sinc_kernel_is_the_fourier_transform_of_a_disc():
    cutoff, steps = 1.9, 801
    line = np.linspace(-math.pi, math.pi, steps)
    inside = np.hypot(*np.meshgrid(line, line)) < cutoff
    waves = np.exp(1j * np.outer(np.arange(-5, 6), line))
    kernel = (waves @ inside @ waves.T).real
    np.testing.assert_allclose(blind.sinc_kernel(11, cutoff), kernel / kernel.sum(), atol=2e-4)


@pytest.mark.parametrize("cutoff", [math.pi / 3, math.pi / 2])
def test_a_wave_passes_the_sinc_filter_below_its_cutoff_and_not_above(cutoff):
    kernel = blind.sinc_kernel(61, cutoff).double()
    x = torch.arange(-30, 31, dtype=torch.float64)
    response = [
        (kernel.sum(0) * torch.cos(share * cutoff * x)).sum().item() for share in (0.6, 1.5)
    ]
    assert response[0] == pytest.approx(1, abs=0.1) and response[1] == pytest.approx(0, abs=0.1)


def test_drawn_kernels_keep_to_the_sizes_and_kinds_of_the_config(random):
    cfg = FirstOrder(kernel_size=(7, 11), sinc_prob=0)
    for _ in range(30):
        kernel = blind.draw_kernel(cfg, random)
        assert kernel.shape == (11, 11) and kernel.min() >= 0
    small = blind.draw_kernel(FirstOrder(kernel_size=(3, 3)), random)
    assert small.shape == (3, 3)
    ringing = [blind.draw_kernel(FirstOrder(sinc_prob=1), random) for _ in range(10)]
    assert all(kernel.min() < 0 for kernel in ringing)
    assert torch.equal(
        blind.draw_kernel(FirstOrder(blur_prob=0), random), blind.identity_kernel(21)
    )
    isotropic = [
        blind.draw_kernel(FirstOrder(sinc_prob=0, kernel_weights=(1, 0, 1, 0, 1, 0)), random)
        for _ in range(10)
    ]
    assert all(
        torch.allclose(kernel, kernel.T) and torch.allclose(kernel, kernel.flip(0))
        for kernel in isotropic
    )
    elongated = [
        blind.draw_kernel(FirstOrder(sinc_prob=0, kernel_weights=(0, 1, 0, 1, 0, 1)), random)
        for _ in range(10)
    ]
    assert not any(torch.allclose(kernel, kernel.T) for kernel in elongated)
    shapes = {
        float(k[10, 10])
        for k in (
            blind.draw_kernel(FirstOrder(sigma=(2, 2), sinc_prob=0), random) for _ in range(40)
        )
    }
    assert len(shapes) > 10, "sizes and exponents vary when sigma is fixed"


# ------------------------------------------------------------------------ blur, resize, noise, JPEG


def test_each_sample_is_blurred_by_its_own_kernel_with_mirrored_borders():
    images, kernels = noise(2, 3, 4, 6), noise(2, 5, 5)
    kernels = kernels + kernels.flip(1, 2)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="symmetric")
    expected = np.zeros(images.shape)
    for b, c, y, x in np.ndindex(*images.shape):
        expected[b, c, y, x] = (padded[b, c, y : y + 5, x : x + 5] * kernels[b].numpy()).sum()
    np.testing.assert_allclose(blind.blur(images, kernels), expected, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_the_mirror_goes_on_without_end(length):
    expected = np.pad(np.arange(length), 12, mode="symmetric")
    assert blind.mirrored(-12, length + 12, length).tolist() == expected.tolist()


def test_the_identity_kernel_blurs_nothing():
    images = noise(2, 3, 5, 4)
    assert torch.equal(blind.blur(images, blind.identity_kernel(21).expand(2, -1, -1)), images)


def test_resizing_goes_up_down_and_nowhere_as_often_as_the_weights_say(random):
    image, cfg = noise(1, 3, 200, 100), FirstOrder(resize_weights=(2, 7, 1), resize=(0.2, 1.5))
    sizes = [
        tuple(blind._resize_by_chance(image, (200, 100), cfg, random).shape[-2:])
        for _ in range(400)
    ]
    heights = np.array([height for height, _ in sizes])
    assert 40 <= heights.min() < 60 and 280 < heights.max() <= 300
    assert all(abs(height - 2 * width) <= 1 for height, width in sizes)
    shares = [(heights > 200).mean(), (heights < 200).mean(), (heights == 200).mean()]
    np.testing.assert_allclose(shares, [0.2, 0.7, 0.1], atol=0.07)


@pytest.mark.parametrize("gray", [False, True])
def test_gaussian_noise_has_its_standard_deviation_and_no_mean(random, gray):
    change = blind.gaussian_noise(torch.full((1, 3, 200, 200), 0.5), 0.05, gray, random) - 0.5
    assert change.mean().abs() < 1e-3 and change.std().item() == pytest.approx(0.05, rel=0.02)
    assert torch.equal(change[:, 0], change[:, 1]) == gray
    clipped = blind.gaussian_noise(torch.ones(1, 3, 9, 9), 0.5, gray, random)
    assert clipped.max() == 1 and clipped.min() >= 0


@pytest.mark.parametrize(("levels", "peak"), [(256, 256), (100, 128)])
def test_poisson_noise_has_the_mean_and_variance_of_counted_photons(random, levels, peak):
    values = torch.linspace(0, 255, levels).round() / 255
    image = values[None, None, :, None].expand(1, 3, levels, 4000)
    change = blind.poisson_noise(image, 0.1, False, random) - image
    middle = change[0, :, levels // 2]
    assert middle.mean().abs() < 3e-4
    assert middle.var().item() == pytest.approx(
        0.1**2 * values[levels // 2].item() / peak, rel=0.07
    )
    assert not torch.equal(change[0, 0], change[0, 1])
    assert change[0, :, 0].abs().max() == 0, "no light, no noise"


def test_a_picture_of_two_levels_has_two_photons_for_white(random):
    image = torch.tensor([0.0, 1.0]).expand(1, 3, 500, 2)
    change = image - blind.poisson_noise(image, 0.1, False, random)
    # more than two are clipped
    assert set(change[..., 1].mul(20).round(decimals=3).unique().tolist()) == {
        0,
        1,
        2,
    }


def test_grey_poisson_noise_follows_the_luminance_in_all_channels(random):
    """Grey poisson noise is alike in all channels and follows the luminance."""
    ramp = torch.arange(256.0).expand(300, 256) / 255
    image = torch.stack([ramp * 0, ramp, ramp * 0])[None]  # pure green: luminance 0.587 * ramp
    change = blind.poisson_noise(image, 0.1, True, random) - image
    assert (
        torch.equal(change[0, 0].clamp(min=0), change[0, 2].clamp(min=0)) and change[0, 0].max() > 0
    )
    levels = torch.unique((0.587 * torch.arange(256.0)).round()).numel()
    expected = 0.1**2 * 0.587 * 128 / 255 / 2 ** math.ceil(math.log2(levels))
    assert change[0, 1, :, 118:138].var().item() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("quality", [30, 95])
def test_jpeg_loses_what_libjpeg_loses(quality):
    pixels = torch.from_numpy(smooth(37, 51)).permute(2, 0, 1)
    found = blind.jpeg(pixels[None] / 255, quality)[0] * 255
    # another build of libjpeg
    data = pyvips.Image.new_from_array(smooth(37, 51)).jpegsave_buffer(
        Q=quality, subsample_mode="on"
    )
    other = torch.from_numpy(pyvips.Image.new_from_buffer(data, "").numpy()).permute(2, 0, 1)
    assert (found - other).abs().max() <= 2
    assert (found - pixels).abs().mean() > 0.2


# ------------------------------------------------------------------------------------- the pipeline


def test_a_sample_depends_on_picture_and_seed_not_on_its_batch():
    """Bit for bit: a level that JPEG sees otherwise would grow to many. The grouped convolution of
    the first blur keeps it so, since each channel's sum is formed alone and in one order; all
    behind it runs sample by sample.
    """
    hr, seeds = noise(7, 3, 68, 76), [(5, n) for n in range(7)]
    batch = degrade_blind(hr, 4, BlindConfig(), seeds)
    alone = torch.cat(
        [degrade_blind(hr[i : i + 1], 4, BlindConfig(), [seeds[i]]) for i in range(7)]
    )
    assert torch.equal(batch, alone)
    order = [3, 0, 6]
    assert torch.equal(
        degrade_blind(hr[order], 4, BlindConfig(), [seeds[i] for i in order]), batch[order]
    )


def test_another_seed_is_another_degradation():
    hr = noise(1, 3, 32, 32).expand(4, -1, -1, -1)
    found = degrade_blind(hr, 4, BlindConfig(), [0, 1, 2, 0])
    assert torch.equal(found[0], found[3])
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])


def test_neither_autocast_nor_the_global_random_state_has_a_say():
    hr = noise(2, 3, 32, 32)
    expected, before = degrade_blind(hr, 4, BlindConfig(), [0, 1]), torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(99)
        assert torch.equal(degrade_blind(hr, 4, BlindConfig(), [0, 1]), expected)
    torch.set_rng_state(before)
    degrade_blind(hr, 4, BlindConfig(), [0, 1])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(4, 4, 4), (12, 44, 4), (21, 27, 3), (17, 9, 1), (2, 34, 2)]
)
def test_every_size_down_to_one_pixel_comes_out_exact_and_on_8_bits(height, width, scale):
    found = degrade_blind(
        noise(12, 3, height, width), scale, BlindConfig(second_order_prob=0.8), range(12)
    )
    assert found.shape == (12, 3, height // scale, width // scale) and found.dtype == torch.float32
    assert found.min() >= 0 and found.max() <= 1
    assert torch.equal(found, (found * 255).round() / 255)


def test_with_everything_off_only_the_best_jpeg_is_left():
    hr = torch.from_numpy(smooth(40, 56)).permute(2, 0, 1)[None] / 255
    found = degrade_blind(hr.expand(8, -1, -1, -1), 1, HARMLESS, range(8))
    assert (found - hr).abs().mean() < 1.5 / 255  # two passes of 4:2:0
    assert all(torch.equal(one, found[0]) for one in found), "there is nothing left to draw"


PARTS = {
    "blur": {"blur_prob": 1, "sinc_prob": 0, "sigma": (3, 3)},
    "sinc blur": {"blur_prob": 1, "sinc_prob": 1},
    "resize": {"resize_weights": (0, 1, 0), "resize": (0.5, 1)},
    "Gaussian noise": {"gaussian_sigma": (25, 25)},
    "Poisson noise": {"gaussian_noise_prob": 0, "poisson_scale": (2, 2)},
    "JPEG": {"jpeg_quality": (30, 30)},
}


@pytest.mark.parametrize("part", PARTS)
def test_each_part_of_each_order_is_applied_as_often_as_it_should(part):
    """At scale 1 HARMLESS is the same for all seeds (see above), so what differs from it is the
    part that was switched on.
    """
    hr = noise(1, 3, 48, 48).expand(60, -1, -1, -1)
    plain = degrade_blind(hr, 1, HARMLESS, range(60))

    def share_changed(**knobs):
        found = degrade_blind(hr, 1, HARMLESS.model_copy(update=knobs), range(60))
        return ((found - plain).abs().mean((1, 2, 3)) > 0.01).float().mean().item()

    assert share_changed(first=FirstOrder(**CLEAN | PARTS[part])) > 0.9
    second = SecondOrder(**CLEAN | PARTS[part])
    assert share_changed(second=second, second_order_prob=1) > 0.9
    assert share_changed(second=second, second_order_prob=0) == (part == "JPEG"), (
        "the last JPEG is always there"
    )
    if part != "JPEG":
        assert 0.25 < share_changed(second=second, second_order_prob=0.5) < 0.75


def test_the_final_sinc_filter_is_applied_as_often_as_it_should():
    hr = noise(1, 3, 48, 48).expand(60, -1, -1, -1)
    plain = degrade_blind(hr, 1, HARMLESS, range(60))
    found = degrade_blind(hr, 1, HARMLESS.model_copy(update={"final_sinc_prob": 0.5}), range(60))
    assert 0.25 < ((found - plain).abs().mean((1, 2, 3)) > 0.005).float().mean() < 0.75


@pytest.mark.parametrize(
    ("hr", "seeds"),
    [
        (torch.zeros(1, 3, 9, 8), [0]),
        (torch.zeros(2, 3, 8, 8), [0]),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [0]),
    ],
)
def test_what_it_does_not_take_is_named(hr, seeds):
    with pytest.raises(
        ValueError,
        match="takes a floating batch with sides in multiples of the scale and one seed a sample",
    ):
        degrade_blind(hr, 4, BlindConfig(), seeds)


# -------------------------------------------------------------------------------------------- pairs


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        write_image(tmp_path / f"{i}.png", Image(smooth(70 + 8 * i, 140 - 9 * i)))
    return tmp_path


def config(folder, degradation=BlindConfig(), **knobs) -> DataConfig:  # noqa: B008
    return DataConfig(
        train=(str(folder),), val=(str(folder),), degradation=degradation, **{"patch": 32, **knobs}
    )


def samples(data: PairDataset, *numbers: int) -> Batch:
    return data.finish(data.load(Request(numbers, data.cfg.patch)))


def test_a_blind_sample_is_a_function_of_seed_and_number(folder):
    walked = PairDataset(config(folder), scale=4, seed=7)
    history = [walked.batch(step, 3) for step in range(3)]
    alone = samples(PairDataset(config(folder), scale=4, seed=7), 8)
    assert torch.equal(alone.lr[0], history[2].lr[2]) and torch.equal(alone.hr[0], history[2].hr[2])
    assert not torch.equal(samples(PairDataset(config(folder), scale=4, seed=8), 8).lr, alone.lr)
    assert alone.lr.shape == (1, 3, 8, 8) and alone.lr.min() >= -1 and alone.lr.max() <= 1


def test_hr_patches_are_those_of_the_bicubic_run(folder):
    bicubic = PairDataset(DataConfig(train=(str(folder),), patch=32), scale=4, seed=7).batch(0, 6)
    found = PairDataset(config(folder), scale=4, seed=7).batch(0, 6)
    assert found.draws == bicubic.draws and torch.equal(found.hr, bicubic.hr)


def test_blind_lr_lies_where_its_hr_patch_lies(folder):
    """Blind lr lies where its hr patch lies in every symmetry and at every border."""
    data = PairDataset(config(folder, HARMLESS), scale=4, seed=0)
    bicubic = PairDataset(DataConfig(train=(str(folder),), patch=32), scale=4, seed=0)
    numbers = range(60)
    found, expected = samples(data, *numbers), samples(bicubic, *numbers)
    assert {draw.symmetry for draw in found.draws} == set(range(8))
    for lr, wanted, other in zip(found.lr, expected.lr, expected.lr.roll(1, -1)):
        assert (lr - wanted).abs().mean() < 0.06 < (lr - other).abs().mean()


def test_a_patch_is_degraded_with_its_real_neighbours(folder):
    hr = torch.from_numpy(read_image(folder / "3.png").pixels).permute(2, 0, 1)[:, :92, :112]
    margin = (MARGIN + JPEG_BLOCK) * 4
    padded = np.pad(
        hr.numpy(), ((0, 0), (margin, 2 * margin), (margin, 2 * margin)), mode="symmetric"
    )
    shapes = set()
    for top, left in [(0, 0), (15, 20), (10, 13), (11, 0)]:
        (rows, columns), (y, x) = _window(Draw(0, top, left, 0), 8, 4, (92, 112))
        window = hr[:, rows][:, :, columns]
        shapes.add(window.shape)
        assert min(y, x) >= MARGIN and max(y, x) + 8 + MARGIN <= window.shape[-1] / 4
        assert (top - y) % JPEG_BLOCK == (left - x) % JPEG_BLOCK == 0
        row, column = (top - y) * 4 + margin, (left - x) * 4 + margin
        expected = padded[:, row : row + window.shape[1], column : column + window.shape[2]]
        np.testing.assert_array_equal(window, expected)
    assert len(shapes) == 1


def test_at_scale_one_lr_is_degraded_too(folder):
    batch = PairDataset(config(folder), scale=1, seed=0).batch(0, 2)
    assert batch.lr.shape == batch.hr.shape and not torch.equal(batch.lr, batch.hr)


def test_validation_pictures_keep_their_degradation(folder):
    """Validation pictures keep their degradation whatever is chosen beside them."""
    full = {name: lr for name, _, lr in validation_pairs(config(folder), 4, limit=4, crop=64)}
    few = {name: lr for name, _, lr in validation_pairs(config(folder), 4, limit=2, crop=64)}
    assert list(few) == ["0", "3"] and all(torch.equal(full[name], lr) for name, lr in few.items())
    assert full["0"].shape == (1, 3, 16, 16)
    for (_, hr, lr), (_, _, clean) in zip(
        *(validation_pairs(c, 4, 1, 64) for c in (config(folder), config(folder, HARMLESS)))
    ):
        bicubic = to_float(degrade(((hr + 1) * 127.5).round().to(torch.uint8), 4))
        assert (clean - bicubic).abs().mean() < 0.06 < (lr - bicubic).abs().mean()


def test_cached_latents_belong_to_the_lr_patch_that_their_sample_shows(folder):
    class Halves(torch.nn.Conv2d):
        """An encoder that keeps what it saw."""

        def encode(self, x):
            return torch.nn.functional.avg_pool2d(x, 4)

    data = LatentDataset(
        PairDataset(config(folder), scale=4, seed=0), Halves(1, 1, 1), 4, with_hr=True
    )
    rounds = [data.batch(number, 4) for number in range(3)]
    for batch in rounds:
        seen = [
            next(i for i, hr in enumerate(rounds[0].hr) if torch.equal(hr, other))
            for other in batch.hr
        ]
        assert torch.equal(batch.lr, rounds[0].lr[seen]) and torch.equal(
            batch.z_lr, rounds[0].z_lr[seen]
        )
