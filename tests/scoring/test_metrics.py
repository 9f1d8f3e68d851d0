"""Laws of PSNR, SSIM, consistency and LPIPS."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from ldm_dream.scoring.metrics import (
    MetricError,
    MetricUnavailable,
    consistency,
    downsample,
    gmsd,
    load_lpips,
    lpips_distance,
    luma,
    psnr,
    ssim,
)

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
LPIPS_WEIGHTS = SHARED / "data/weights_perceptual/lpips_alexnet_fp32.pth"


def photo(height=40, width=48, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("channel", ["y", "rgb"])
def test_equal_pictures_have_infinite_psnr_ssim_one_and_other_ones_less(channel):
    assert psnr(photo(), photo(), channel=channel, crop_border=0) == math.inf
    assert ssim(photo(), photo(), channel=channel, crop_border=0) == pytest.approx(1, abs=1e-12)
    assert ssim(photo(), photo(seed=1), channel=channel, crop_border=0) < 0.1


def test_a_shift_by_one_level_has_the_closed_form_psnr():
    hr = photo() // 2
    assert psnr(hr + 1, hr, channel="rgb", crop_border=0) == pytest.approx(
        20 * math.log10(255), abs=1e-12
    )
    gap = psnr(hr + 1, hr, channel="y", crop_border=0) - psnr(
        hr + 1, hr, channel="rgb", crop_border=0
    )
    assert gap == pytest.approx(
        20 * math.log10(255 / 219), abs=1e-9
    )  # the 1.32 dB between studio-range and full-range luma


def test_luma_runs_from_16_to_235_unrounded():
    assert luma(np.array([[0, 0, 0], [255, 255, 255]])) == pytest.approx([16, 235])
    assert luma(np.array([1, 0, 0])) == pytest.approx(16 + 65.481 / 255)


def test_the_border_is_left_out():
    sr = photo()
    sr[:4], sr[-4:], sr[:, :4], sr[:, -4:] = 0, 0, 0, 0
    assert (
        psnr(sr, photo(), channel="y", crop_border=4)
        == math.inf
        > psnr(sr, photo(), channel="y", crop_border=3)
    )
    assert (
        ssim(sr, photo(), channel="rgb", crop_border=4)
        == pytest.approx(1)
        != ssim(sr, photo(), channel="rgb", crop_border=3)
    )


def test_ssim_is_the_textbook_mean_over_each_11x11_window():
    sr, hr = photo(13, 12)[..., :1].repeat(3, 2), photo(13, 12, seed=1)[..., :1].repeat(3, 2)
    x = np.arange(11) - 5
    window = np.exp(-(x[:, None] ** 2 + x**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for i in range(3):
        for j in range(2):
            a, b = (p[i : i + 11, j : j + 11, 0].astype(float) for p in (sr, hr))
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb, cov = (
                (window * (a - ma) ** 2).sum(),
                (window * (b - mb) ** 2).sum(),
                (window * (a - ma) * (b - mb)).sum(),
            )
            c1, c2 = 2.55**2, 7.65**2
            values.append(
                (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
            )
    assert ssim(sr, hr, channel="rgb", crop_border=0) == pytest.approx(np.mean(values), abs=1e-12)


def test_gmsd_of_one_white_square_on_black_has_its_closed_form():
    """The square is one pixel after halving: its Prewitt gradient is 85 at the four neighbours,
    85 sqrt 2 at the four corners, 0 at itself; that of black is 0.
    """
    sr, black = np.zeros((2, 16, 20, 3), dtype=np.uint8)
    sr[6:8, 8:10] = 255
    similarity = np.ones(8 * 10)
    similarity[:4], similarity[4:8] = 170 / (85**2 + 170), 170 / (2 * 85**2 + 170)
    assert gmsd(sr, black) == gmsd(black, sr) == pytest.approx(similarity.std(), abs=1e-12)
    assert gmsd(sr, sr) == 0


def test_gmsd_of_noise_is_what_piq_prints():
    """The figure of piq 0.8.0, `piq.gmsd(sr, hr, data_range=255)` in float64."""
    assert gmsd(photo(), photo(seed=1)) == pytest.approx(0.1943132315934938, abs=1e-9)


def test_gmsd_is_larger_for_a_blurred_picture():
    hr = downsample(photo(), 10, 12).repeat(4, 0).repeat(4, 1)
    blurred = [downsample(downsample(hr, 40 // n, 48 // n), 40, 48) for n in (2, 8)]
    assert 0 < gmsd(blurred[0], hr) < gmsd(blurred[1], hr)


def test_consistency_is_zero_for_the_shrunk_picture_and_counts_squares_in_unit_range():
    lr = downsample(photo(), 10, 12)
    assert consistency(photo(), lr) == 0
    assert consistency(
        np.full((8, 8, 3), 100, np.uint8), np.full((2, 2, 3), 151, np.uint8)
    ) == pytest.approx(0.2**2)
    assert np.array_equal(
        lr,
        np.asarray(PillowImage.fromarray(photo()).resize((12, 10), PillowImage.Resampling.BICUBIC)),
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: psnr(photo(), photo(40, 47), channel="y", crop_border=0), "of one size"),
        (lambda: gmsd(photo(), photo(40, 47)), "of one size"),
        (lambda: psnr(photo() / 255, photo() / 255, channel="y", crop_border=0), "uint8"),
        (
            lambda: ssim(photo()[..., 0], photo()[..., 0], channel="y", crop_border=0),
            r"\[H, W, 3\]",
        ),
        (lambda: psnr(photo(), photo(), channel="Y", crop_border=0), "use 'y' or 'rgb'"),
        (lambda: psnr(photo(), photo(), channel="y", crop_border=20), "leaves nothing"),
        (lambda: ssim(photo(10, 40), photo(10, 40), channel="y", crop_border=0), "at least 11x11"),
    ],
)
def test_pictures_that_cannot_be_compared_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -------------------------------------------------------------------------------------------- LPIPS


def test_lpips_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(MetricUnavailable, match=r"ldm_dream\[eval\]"):
        load_lpips()


def test_lpips_without_weights_names_the_file_and_never_downloads(monkeypatch, tmp_path):
    pytest.importorskip("lpips")
    monkeypatch.setattr(
        torch.hub, "load_state_dict_from_url", lambda *a, **k: pytest.fail("download")
    )
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MetricUnavailable, match=r"alexnet-owt-\*\.pth"):
        load_lpips()
    with pytest.raises(MetricUnavailable, match=r"none\.pth: no such file"):
        load_lpips(tmp_path / "none.pth")
    with pytest.raises(MetricUnavailable, match=r"vgg16-\*\.pth"):
        load_lpips(net="vgg")
    with pytest.raises(ValueError, match="use one of alex, vgg"):
        load_lpips(net="squeeze")


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory):
    """A file as torchvision publishes it, with random values; (folder to use as TORCH_HOME, its
    state dict).
    """
    pytest.importorskip("lpips")
    from torchvision.models import alexnet

    home = tmp_path_factory.mktemp("torch_home")
    (home / "hub/checkpoints").mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = {
            k: v for k, v in alexnet(weights=None).state_dict().items() if k.startswith("features.")
        }
    torch.save(state, home / "hub/checkpoints/alexnet-owt-7be5be79.pth")
    return home, state


@pytest.fixture(scope="module")
def distance(alexnet):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(alexnet[0]))
        return load_lpips()


def test_lpips_takes_torchvisions_cached_trunk(distance, alexnet):
    own = dict(distance.named_parameters())
    for name, value in alexnet[1].items():
        match = [
            p
            for key, p in own.items()
            if key.endswith("." + name.removeprefix("features.")) and ".net." in key
        ]
        assert len(match) == 1 and torch.equal(match[0], value)


def test_lpips_is_a_distance_a_sample_and_differentiable_in_its_first_argument(distance):
    x, y = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x.requires_grad_()
    value = distance(x, y)
    assert value.shape == (2,) and (value > 0).all()
    assert torch.equal(distance(y, y), torch.zeros(2))
    value.sum().backward()
    assert x.grad.abs().max() > 0 and all(p.grad is None for p in distance.parameters())
    torch.testing.assert_close(distance(x.detach()[1:], y[1:]), value.detach()[1:])


def test_lpips_stays_frozen_in_eval_mode_inside_a_training_parent(distance):
    torch.nn.ModuleList([distance]).train()
    assert not any(m.training for m in distance.modules()) and not any(
        p.requires_grad for p in distance.parameters()
    )


def test_loading_lpips_prints_nothing_and_leaves_the_random_state(
    alexnet, monkeypatch, capsys, recwarn
):
    monkeypatch.setenv("TORCH_HOME", str(alexnet[0]))
    before = torch.get_rng_state()
    load_lpips()
    assert torch.equal(torch.get_rng_state(), before)
    assert capsys.readouterr() == ("", "") and not len(recwarn)


def test_weights_of_another_network_are_refused(alexnet, tmp_path):
    torch.save(
        {k: v for k, v in alexnet[1].items() if k != "features.10.bias"}, tmp_path / "cut.pth"
    )
    with pytest.raises(
        MetricUnavailable, match=r"features\.10\.bias is missing or has another shape"
    ):
        load_lpips(tmp_path / "cut.pth")
    torch.save(torch.ones(3), tmp_path / "tensor.pth")
    with pytest.raises(MetricUnavailable, match="holds a Tensor"):
        load_lpips(tmp_path / "tensor.pth")


def test_a_broken_weights_file_is_named(alexnet, tmp_path):
    whole = (alexnet[0] / "hub/checkpoints/alexnet-owt-7be5be79.pth").read_bytes()
    for name, data in (
        ("half.pth", whole[: len(whole) // 2]),
        ("text.pth", b"not found"),
        ("empty.pth", b""),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(MetricUnavailable, match=f"{name}: is no whole torch file"):
            load_lpips(tmp_path / name)


def test_pictures_too_small_for_the_trunk_are_refused(distance):
    assert lpips_distance(distance, photo(31, 31), photo(31, 31, seed=1)) > 0
    with pytest.raises(MetricError, match="30x31 pixels; it needs at least 31x31"):
        lpips_distance(distance, photo(30, 31), photo(30, 31))


def test_lpips_of_pictures_spreads_them_from_black_to_one(distance):
    sr, hr = photo(), photo(seed=1)
    x, y = (torch.from_numpy(p / 255).float().permute(2, 0, 1)[None] for p in (sr, hr))
    assert lpips_distance(distance, sr, hr) == pytest.approx(
        float(distance(2 * x - 1, 2 * y - 1)), rel=1e-5
    )
    assert lpips_distance(distance, sr, hr, black=0) == pytest.approx(
        float(distance(x, y)), rel=1e-5
    )


def test_lpips_vgg_runs_on_torchvisions_names(tmp_path):
    lpips = pytest.importorskip("lpips")
    from torchvision.models import vgg16

    with torch.device("meta"):
        shapes = {
            k: v.shape
            for k, v in vgg16(weights=None).state_dict().items()
            if k.startswith("features.")
        }
    generator = torch.Generator().manual_seed(0)
    state = {
        k: torch.randn(s, generator=generator) * (2 / math.prod(s[1:])) ** 0.5
        for k, s in shapes.items()
    }
    torch.save(state, tmp_path / "vgg.pth")
    ours = load_lpips(tmp_path / "vgg.pth", net="vgg")
    for name, child in [
        c for piece in list(ours.model.net.children())[:5] for c in piece.named_children()
    ]:
        if isinstance(child, torch.nn.Conv2d):
            assert torch.equal(child.weight, state[f"features.{name}.weight"])
    heads = torch.load(
        Path(lpips.__file__).parent / "weights/v0.1/vgg.pth", map_location="cpu", weights_only=True
    )
    assert torch.equal(ours.model.lin4.model[1].weight, heads["lin4.model.1.weight"])
    assert (
        lpips_distance(ours, photo(16, 16), photo(16, 16))
        == 0
        < lpips_distance(ours, photo(16, 16), photo(16, 16, seed=1))
    )
    with pytest.raises(MetricUnavailable, match="is no alex network"):
        load_lpips(tmp_path / "vgg.pth", net="alex")


@pytest.mark.skipif(not LPIPS_WEIGHTS.is_file(), reason=f"{LPIPS_WEIGHTS} is not here")
def test_lpips_alex_equals_the_lpips_package_fed_the_same_weights():
    lpips = pytest.importorskip("lpips")
    state = torch.load(LPIPS_WEIGHTS, map_location="cpu", weights_only=True)
    theirs = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)  # its own heads, a random trunk
    with torch.no_grad():
        for name, child in [
            c for piece in list(theirs.net.children())[:5] for c in piece.named_children()
        ]:
            if isinstance(child, torch.nn.Conv2d):
                child.weight.copy_(state[f"features.{name}.weight"])
                child.bias.copy_(state[f"features.{name}.bias"])
    x, y = torch.rand(2, 2, 3, 64, 72, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(load_lpips(LPIPS_WEIGHTS)(x, y), theirs(x, y).flatten())


@pytest.mark.skipif(not LPIPS_WEIGHTS.is_file(), reason=f"{LPIPS_WEIGHTS} is not here")
def test_lpips_with_published_weights_equals_a_forward_written_out():
    lpips = pytest.importorskip("lpips")
    state = torch.load(LPIPS_WEIGHTS, map_location="cpu", weights_only=True)
    x, y = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scaling = lpips.ScalingLayer()

    def features(z):
        maps, z = [], scaling(z)
        for i, (layer, stride, pad) in enumerate(
            [(0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)]
        ):
            z = torch.nn.functional.max_pool2d(z, 3, 2) if i in (1, 2) else z
            z = torch.conv2d(
                z, state[f"features.{layer}.weight"], state[f"features.{layer}.bias"], stride, pad
            ).relu()
            maps.append(z / (z.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return maps

    expected = sum(
        torch.conv2d((a - b) ** 2, state[f"lin{i}.weight"]).mean()
        for i, (a, b) in enumerate(zip(features(x), features(y)))
    )
    torch.testing.assert_close(
        load_lpips(LPIPS_WEIGHTS)(x, y), expected[None], rtol=1e-5, atol=1e-7
    )
