"""Laws of blind degradation: each block by its own definition, the pipeline by what a sample may
depend on.
"""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ldm_dream.config.data import BlindConfig, DataConfig, FirstOrder, SecondOrder
from ldm_dream.data import blind
from ldm_dream.data.blind import degrade_as_planned, degrade_blind
from ldm_dream.data.blind_plan import MODES, Plan, draw_kernel, draw_resize, plan_blind
from ldm_dream.data.blind_ways import ON_DEVICE
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


# ---------------------------------------------------------------------------------------- the plan


def kernels(cfg: FirstOrder, random: np.random.Generator, count: int = 10) -> list[np.ndarray]:
    """[K,K] each."""
    drawn = [draw_kernel(cfg, random) for _ in range(count)]
    assert all(kernel is not None for kernel in drawn)
    return [np.outer(k, k) if k.ndim == 1 else k for k in drawn if k is not None]


def test_drawn_kernels_keep_to_the_sizes_and_kinds_of_the_config(random):
    sized = kernels(FirstOrder(kernel_size=(7, 11), sigma=(3, 3), sinc_prob=0), random, 40)
    assert {len(kernel) for kernel in sized} == {7, 9, 11}
    assert all(kernel.min() >= 0 for kernel in sized)
    assert {len(k) for k in kernels(FirstOrder(kernel_size=(3, 3)), random)} <= {1, 3}
    assert all(kernel.min() < 0 for kernel in kernels(FirstOrder(sinc_prob=1), random))
    assert draw_kernel(FirstOrder(blur_prob=0), random) is None
    isotropic = FirstOrder(sinc_prob=0, kernel_weights=(1, 0, 1, 0, 1, 0))
    assert all(np.allclose(k, k.T) and np.allclose(k, k[::-1]) for k in kernels(isotropic, random))
    elongated = FirstOrder(sinc_prob=0, kernel_weights=(0, 1, 0, 1, 0, 1))
    assert not any(np.allclose(kernel, kernel.T) for kernel in kernels(elongated, random))
    shapes = {kernel.max() for kernel in kernels(FirstOrder(sigma=(2, 2)), random, 40)}
    assert len(shapes) > 10, "sizes and exponents vary when sigma is fixed"


def test_kinds_of_kernels_come_as_often_as_their_weights_say(random):
    cfg = FirstOrder(sinc_prob=0.2, kernel_weights=(3, 0, 0, 1, 0, 0), blur_prob=0.5)
    drawn = [draw_kernel(cfg, random) for _ in range(1500)]
    shares = [
        np.mean([kernel is None for kernel in drawn]),
        np.mean([kernel is not None and kernel.ndim == 1 for kernel in drawn]),
        np.mean([kernel is not None and kernel.min() < 0 for kernel in drawn]),
    ]
    np.testing.assert_allclose(shares, [0.5, 0.5 * 0.8 * 0.75, 0.5 * 0.2], atol=0.04)


def test_resizing_goes_up_down_and_nowhere_as_often_as_the_weights_say(random):
    cfg = FirstOrder(resize_weights=(2, 7, 1), resize=(0.2, 1.5))
    drawn = [draw_resize(cfg, (200, 100), random) for _ in range(600)]
    sizes = [resize.size for resize in drawn]
    heights = np.array([height for height, _ in sizes])
    assert 40 <= heights.min() < 60 and 280 < heights.max() <= 300
    assert all(abs(height - 2 * width) <= 1 for height, width in sizes)
    shares = [(heights > 200).mean(), (heights < 200).mean(), (heights == 200).mean()]
    np.testing.assert_allclose(shares, [0.2, 0.7, 0.1], atol=0.07)
    modes = [np.mean([resize.mode == mode for resize in drawn]) for mode in MODES]
    np.testing.assert_allclose(modes, 1 / 3, atol=0.07)


def test_a_plan_is_a_function_of_its_seed_and_travels_between_processes():
    plans = plan_blind(BlindConfig(), 4, (64, 80), [(1, n) for n in range(6)])
    alone = plan_blind(BlindConfig(), 4, (64, 80), [(1, 4)])
    sent = pickle.loads(pickle.dumps(plans))
    assert len({plan.noise_seed for plan in plans}) == 6
    hr = noise(6, 3, 64, 80)
    expected = degrade_blind(hr, 4, BlindConfig(), [(1, n) for n in range(6)])
    assert torch.equal(degrade_as_planned(hr, sent), expected)
    assert torch.equal(degrade_as_planned(hr[4:5], alone), expected[4:5])


# -------------------------------------------------------------------------------------- on a device


def on_device(hr: torch.Tensor, plans: list[Plan]) -> torch.Tensor:
    """What a GPU does, here."""
    return blind._degrade(hr, plans, blind._carried(plans, hr.device), ON_DEVICE)


class NothingWaits(TorchDispatchMode):
    """Fails where a GPU would send a number to Python or wait for one from it."""

    WAITS = (
        "_local_scalar_dense",
        "nonzero",
        "lift_fresh",
        "bincount",
        "_unique2",
        "masked_select",
        "is_nonzero",
        "equal",
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name.startswith("index") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for index in (args[1] if isinstance(args[1], list | tuple) else ())
        )
        assert not masks and name not in self.WAITS, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def test_on_a_device_nothing_waits(monkeypatch):
    """Nothing between the one copy of all numbers to the device and the finished batch."""
    hr, size = noise(24, 3, 32, 40), (32, 40)
    plans = plan_blind(BlindConfig(), 4, size, range(24))
    assert {plan.first.noise.kind for plan in plans} == {"gaussian", "poisson"}
    assert {plan.jpeg_last for plan in plans} == {plan.second is None for plan in plans}
    assert {np.ndim(plan.first.kernel) for plan in plans} == {1, 2}
    carried = blind._carried(plans, hr.device)
    expected = blind._degrade(hr, plans, carried, ON_DEVICE)  # tables are made once a process

    def refuse(*_):
        raise AssertionError("a tensor goes to or comes from Python")

    for name in ("cpu", "numpy", "item", "tolist", "__array__", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    for name in ("tensor", "as_tensor", "from_numpy"):
        monkeypatch.setattr(torch, name, refuse)
    with torch.no_grad(), NothingWaits():
        found = blind._degrade(hr, plans, carried, ON_DEVICE)
    monkeypatch.undo()
    assert torch.equal(found, expected)


def test_what_waits_is_noticed():
    with NothingWaits(), pytest.raises(AssertionError, match="waits"):
        noise(3).sum().item()
    with NothingWaits(), pytest.raises(AssertionError, match="waits"):
        noise(3)[torch.ones(3, dtype=torch.bool)]


def test_a_device_takes_the_same_choices_and_computes_the_same():
    """Only JPEG rounds otherwise: so at its best qualities, nearly the same pixels."""
    fine = {"jpeg_quality": (95, 100)}
    cfg = BlindConfig(first=FirstOrder(**fine), second=SecondOrder(**fine), second_order_prob=0.7)
    hr = torch.from_numpy(smooth(64, 80)).permute(2, 0, 1)[None].expand(24, -1, -1, -1) / 255
    plans = plan_blind(cfg, 2, (64, 80), range(24))
    difference = (on_device(hr, plans) - degrade_as_planned(hr, plans)).abs() * 255
    assert difference.mean() < 1 and (difference.mean((1, 2, 3)) < 3).all()


def test_on_a_device_too_a_sample_depends_on_its_seed_alone():
    hr, plans = noise(5, 3, 36, 44), plan_blind(BlindConfig(), 4, (36, 44), range(5))
    batch = on_device(hr, plans)
    assert torch.equal(on_device(hr[3:4], plans[3:4]), batch[3:4])
    assert torch.equal(batch, (batch * 255).round() / 255)


# ------------------------------------------------------------------------------------- the pipeline


def test_a_sample_depends_on_picture_and_seed_not_on_its_batch():
    """Bit for bit: a level that JPEG sees otherwise would grow to many."""
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
