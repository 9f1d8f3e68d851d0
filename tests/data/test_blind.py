"""Laws of blind degradation: each block by its own definition, the pipeline by what a sample may
depend on.
"""

from __future__ import annotations

import pickle

import numpy as np
import PIL.Image
import pytest
import torch
from degradations import CLEAN, HARMLESS, smooth
from torch.utils._python_dispatch import TorchDispatchMode

from ldm_dream.config.data import BlindConfig, FirstOrder, SecondOrder
from ldm_dream.data import blind
from ldm_dream.data.blind import degrade_as_planned, degrade_blind
from ldm_dream.data.blind_plan import (
    MODES,
    Compress,
    Noise,
    Plan,
    Resize,
    Sharpen,
    Step,
    _happens,
    draw_kernel,
    draw_resize,
    plan_blind,
)
from ldm_dream.data.blind_ways import ON_DEVICE
from ldm_dream.data.blur import gaussian_kernel
from ldm_dream.data.resize import imresize_to
from ldm_dream.data.taps import separated

UNTOUCHED = HARMLESS.model_copy(
    update={
        "first": FirstOrder(**CLEAN, jpeg_prob=0),
        "second": SecondOrder(**CLEAN, jpeg_prob=0),
    }
)
PHOTO = BlindConfig(  # every choice is open but WebP, which no device can
    first=FirstOrder(noise_prob=0.5, jpeg_prob=0.5),
    second=SecondOrder(noise_prob=0.5, jpeg_prob=0.5),
    final_resize=("matlab_bicubic", "pillow_lanczos", "pillow_box", "area"),
    sharpen_prob=0.5,
    again_prob=0.5,
    clean_prob=0.4,
)
WEBP = PHOTO.model_copy(update={"second": SecondOrder(webp_prob=0.5)})


@pytest.fixture
def random():
    return np.random.default_rng(0)


def to_image(pixels: np.ndarray) -> torch.Tensor:
    """uint8 [H,W,3] -> float32 [1,3,H,W] in [0, 1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------------------------------- the plan


def kernels(cfg: FirstOrder, random: np.random.Generator, count: int = 10) -> list[np.ndarray]:
    """[K,K] each."""
    drawn = [draw_kernel(cfg, random) for _ in range(count)]
    return [kernel for kernel in drawn if kernel is not None]


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


def one_line(kernel: np.ndarray) -> bool:
    return len(separated(kernel)[0]) == 1


def test_kinds_of_kernels_come_as_often_as_their_weights_say(random):
    cfg = FirstOrder(sinc_prob=0.2, kernel_weights=(3, 0, 0, 1, 0, 0), blur_prob=0.5)
    drawn = [draw_kernel(cfg, random) for _ in range(1500)]
    shares = [
        np.mean([kernel is None for kernel in drawn]),
        np.mean(
            [kernel is not None and kernel.min() >= 0 and one_line(kernel) for kernel in drawn]
        ),
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
    return blind._degrade(hr, plans, blind._carried(hr, plans, on_cpu=False), ON_DEVICE)


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
    hr = noise(12, 3, 24, 32)
    plans = plan_blind(PHOTO, 4, (24, 32), range(12))
    steps = [step for plan in plans for step in plan.steps]
    assert {step.kind for step in steps if isinstance(step, Noise)} == {"gaussian", "poisson"}
    assert {type(step) for step in steps} == set(Step.__args__)
    assert {step.mode for step in steps if isinstance(step, Resize)} >= {*PHOTO.final_resize}
    carried = blind._carried(hr, plans, on_cpu=False)
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


@pytest.mark.parametrize("knobs", [{}, {"final_resize": PHOTO.final_resize, "sharpen_prob": 0.5}])
def test_a_device_takes_the_same_choices_and_computes_the_same(knobs):
    """Only JPEG rounds otherwise: so at its best qualities, nearly the same pixels."""
    fine = {"jpeg_quality": (95, 100)}
    both = {"first": FirstOrder(**fine), "second": SecondOrder(**fine)}
    cfg = BlindConfig(**both, second_order_prob=0.7, **knobs)
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


@pytest.mark.parametrize("cfg", [BlindConfig(), WEBP], ids=["published", "photo"])
def test_a_sample_depends_on_picture_and_seed_not_on_its_batch(cfg):
    """Bit for bit: a level that JPEG sees otherwise would grow to many."""
    hr, seeds = noise(7, 3, 68, 76), [(5, n) for n in range(7)]
    batch = degrade_blind(hr, 4, cfg, seeds)
    alone = torch.cat([degrade_blind(hr[i : i + 1], 4, cfg, [seeds[i]]) for i in range(7)])
    assert torch.equal(batch, alone)
    order = [3, 0, 6]
    assert torch.equal(degrade_blind(hr[order], 4, cfg, [seeds[i] for i in order]), batch[order])


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


def done(image: torch.Tensor, *steps) -> torch.Tensor:
    return degrade_as_planned(image, [Plan(steps, 0)])


SHRINKS = {"box": "BOX", "bilinear": "BILINEAR", "bicubic": "BICUBIC", "lanczos": "LANCZOS"}


@pytest.mark.parametrize("size", [(9, 13), (10, 17), (50, 70)])
@pytest.mark.parametrize("shape", SHRINKS)
def test_pillow_shrinks_are_pillows_own_up_to_its_rounding(shape, size):
    pixels = smooth(36, 52)
    found = done(to_image(pixels), Resize(size, f"pillow_{shape}"))
    way = PIL.Image.Resampling[SHRINKS[shape]]
    resized = PIL.Image.fromarray(pixels).resize(size[::-1], way)
    assert (found - to_image(np.array(resized))).abs().max() <= 1.01 / 255


def test_the_matlab_shrink_is_imresize():
    image = noise(1, 3, 36, 52)
    expected = (imresize_to(image, 9, 13).clamp(0, 1) * 255).round() / 255
    found = done(image, Resize((9, 13), "matlab_bicubic"))
    assert (found - expected).abs().max() <= 1.01 / 255
    assert ((found - expected).abs() > 1e-6).float().mean() < 0.01


def test_sharpening_adds_the_difference_from_the_blurred_picture_and_clips():
    gauss = gaussian_kernel(7, (1.0, 1.0))
    image = torch.full((1, 3, 15, 15), 102 / 255)
    assert torch.equal(done(image, Sharpen(gauss, 1.5)), image)
    image[..., 7, 7] = 127 / 255
    found = (done(image, Sharpen(gauss, 0.8))[0, 0] - image[0, 0]) * 255
    expected = np.zeros((15, 15))
    expected[7, 7] = 20
    expected[4:11, 4:11] -= 20 * gauss
    np.testing.assert_allclose(found, expected, atol=0.51)
    image[..., 7, 7] = 1
    assert done(image, Sharpen(gauss, 3.0)).max() == 1


def test_webp_loses_more_at_lower_quality_and_is_not_jpeg():
    image = to_image(smooth(40, 56))
    good, bad = (done(image, Compress("webp", quality)) for quality in (90, 10))
    assert (good - image).abs().mean() < (bad - image).abs().mean() < 0.1
    assert not torch.equal(good, done(image, Compress("jpeg", 90)))


@pytest.mark.parametrize("probability", [0, 1])
def test_what_never_or_always_happens_draws_nothing(random, probability):
    """So the published degradation is what it was, bit for bit, before it had these knobs."""
    before = random.bit_generator.state
    assert _happens(probability, random) == bool(probability)
    assert random.bit_generator.state == before


def test_a_chance_between_comes_as_often_as_it_says(random):
    found = np.mean([_happens(0.3, random) for _ in range(2000)])
    assert found == pytest.approx(0.3, abs=0.04)


def test_clean_samples_are_only_shrunk_and_as_many_as_they_should_be():
    hr = to_image(smooth(64, 96)).expand(60, -1, -1, -1)
    cfg = PHOTO.model_copy(update={"clean_resize": ("matlab_bicubic",)})
    found = degrade_blind(hr, 4, cfg, range(60))
    off = (found - imresize_to(hr[:1], 16, 24)).abs().amax((1, 2, 3))
    assert 0.2 < (off <= 1.01 / 255).float().mean() < 0.6
    ways = degrade_blind(hr, 4, BlindConfig(clean_prob=1), range(60))
    assert len({tuple(one.flatten().tolist()) for one in ways}) == 5


def test_without_noise_and_compression_nothing_is_left_to_lose():
    hr = to_image(smooth(40, 56))
    assert torch.equal(degrade_blind(hr, 1, UNTOUCHED, [0]), hr)
    loud = {"gaussian_sigma": (50, 50), "noise_prob": 0, "jpeg_prob": 0}
    silent = UNTOUCHED.model_copy(update={"first": FirstOrder(**CLEAN | loud)})
    assert torch.equal(degrade_blind(hr, 1, silent, [0]), hr)


JPEG, WEBP30 = Compress("jpeg", 30), Compress("webp", 30)
ONE_CHANGE = {
    "last JPEG": ({"second": {"jpeg_prob": 1}}, [JPEG]),
    "twice": ({"second": {"jpeg_prob": 1}, "again_prob": 1}, [JPEG, JPEG]),
    "WebP": ({"second": {"jpeg_prob": 1, "webp_prob": 1}}, [WEBP30]),
    "sharpened": (
        {"sharpen_prob": 1, "sharpen_amount": (1, 1), "sharpen_sigma": (1, 1)},
        [Sharpen(gaussian_kernel(7, (1.0, 1.0)), 1.0)],
    ),
}


@pytest.mark.parametrize("change", ONE_CHANGE)
def test_a_knob_does_its_own_change_and_no_other(change):
    knobs, steps = ONE_CHANGE[change]
    second = {"jpeg_prob": 0, "jpeg_quality": (30, 30)} | knobs.get("second", {})
    cfg = UNTOUCHED.model_copy(update=knobs | {"second": SecondOrder(**CLEAN | second)})
    hr = (noise(1, 3, 48, 48) * 255).round() / 255
    for found in degrade_blind(hr.expand(6, -1, -1, -1), 1, cfg, range(6)):
        assert torch.equal(found[None], done(hr, *steps))


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
