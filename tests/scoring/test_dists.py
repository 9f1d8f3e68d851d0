"""DISTS: equal to its authors' code, and what it needs."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from ldm_dream.scoring.dists import Dists, dists_or_reason, load_dists
from ldm_dream.scoring.evaluation import PROTOCOLS, Evaluator
from ldm_dream.scoring.metrics import MetricUnavailable, read_weights
from vgg16 import vgg16_file

COFFEE = Path(__file__).resolve().parents[2] / "tools/assets/coffee.png"
theirs = pytest.importorskip("DISTS_pytorch.DISTS_pt")


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return vgg16_file(tmp_path_factory.mktemp("vgg"))


@pytest.fixture(scope="module")
def dists(file) -> Dists:
    return load_dists(file)


def test_it_is_the_distance_of_its_authors_code(dists, file, monkeypatch):
    monkeypatch.setattr(theirs.models, "vgg16", lambda pretrained: official_vgg16(file))
    official = theirs.DISTS(load_weights=False)
    heads = read_weights(Path(theirs.__file__).with_name("weights.pt"))
    official.alpha.data, official.beta.data = heads["alpha"], heads["beta"]
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(2, 3, 3, 50, 65, generator=generator)
    expected = official(x, y)
    found = dists(x * 2 - 1, y * 2 - 1)
    assert expected.min() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def official_vgg16(file: Path) -> SimpleNamespace:
    from torchvision.models.vgg import cfgs, make_layers

    features = make_layers(cfgs["D"])
    names = {f"features.{name}": name for name in features.state_dict()}
    features.load_state_dict({names[key]: value for key, value in read_weights(file).items()})
    return SimpleNamespace(features=features)


def test_a_blurred_photo_is_further_the_more_it_is_blurred(dists):
    photo = Image.open(COFFEE).convert("RGB").crop((0, 0, 128, 128))
    worn = [photo, *(photo.filter(ImageFilter.GaussianBlur(sigma)) for sigma in (0.5, 1, 2))]
    pictures = [torch.from_numpy(np.array(x)).permute(2, 0, 1)[None] / 127.5 - 1 for x in worn]
    found = [dists(picture, pictures[0]).item() for picture in pictures]
    assert found == sorted(found) and found[-1] > 0.005
    assert found[0] == pytest.approx(0, abs=1e-5)


def test_an_evaluation_has_it_where_its_weights_are(file, monkeypatch, tmp_path):
    evaluator = Evaluator.load(PROTOCOLS["standard"], 4, vgg_weights=file)
    hr = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    evaluator.add("same", "a", hr, hr, None)
    assert evaluator.rows[0]["dists"] == pytest.approx(0, abs=1e-5)
    assert "published alpha and beta" in evaluator.report()["protocol"]["dists"]
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    evaluator = Evaluator.load(PROTOCOLS["standard"], 4)
    assert "vgg16-*.pth" in evaluator.absent["dists"] and evaluator.dists is None


def test_what_is_missing_is_said(file, monkeypatch, tmp_path):
    state = read_weights(file)
    del state["features.28.bias"]
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(MetricUnavailable, match=r"cut.pth: is no vgg16 with torchvision's names"):
        load_dists(tmp_path / "cut.pth")
    monkeypatch.setitem(sys.modules, "DISTS_pytorch", None)
    monkeypatch.setattr("ldm_dream.scoring.dists.find_spec", lambda name: None)
    assert dists_or_reason(file) == (
        None,
        "DISTS needs the package DISTS_pytorch; install it with: pip install 'ldm_dream[eval]'.",
    )
