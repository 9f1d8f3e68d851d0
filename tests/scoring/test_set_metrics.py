"""Laws of FID, KID and the Frechet distances that stand in for it."""

import math
import sys

import numpy as np
import pytest
import torch
import torchvision
from torchvision.transforms import v2

from ldm_dream.scoring import set_metrics as distributions
from ldm_dream.scoring.metrics import MetricUnavailable
from ldm_dream.scoring.set_metrics import (
    SetMetric,
    frechet,
    kid,
    load_inception,
    load_set_metric,
    load_trunk,
)

torch_fidelity = pytest.importorskip("torch_fidelity")


def photos(count: int, seed: int = 0, bright: int = 255) -> list[np.ndarray]:
    """Noise pictures, each of its own size."""
    random = np.random.default_rng(seed)
    return [random.integers(0, bright, (33 + i, 40, 3), dtype=np.uint8) for i in range(count)]


def gaussian(mean, root, count: int = 64, seed: int = 0) -> torch.Tensor:
    """Float64 samples [count, D] whose mean is `mean` and whose covariance is exactly root @
    root.T.
    """
    white = torch.randn(
        count, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    white, _ = torch.linalg.qr(white - white.mean(0))
    return white * (count - 1) ** 0.5 @ torch.tensor(root).double().T + torch.tensor(mean).double()


def random_weights(net: str) -> dict[str, torch.Tensor]:
    """State dict with torchvision's names, no classifier."""
    with torch.device("meta"):
        shapes = {
            k: v.shape
            for k, v in getattr(torchvision.models, net)(weights=None).features.state_dict().items()
        }
    generator = torch.Generator().manual_seed(0)
    return {
        f"features.{k}": torch.randn(s, generator=generator) * (2 / math.prod(s[1:])) ** 0.5
        for k, s in shapes.items()
    }


@pytest.fixture(scope="module")
def alexnet_file(tmp_path_factory):
    torch.save(
        random_weights("alexnet"), path := tmp_path_factory.mktemp("weights") / "alexnet.pth"
    )
    return path


@pytest.fixture
def nothing_cached(monkeypatch, tmp_path):
    monkeypatch.setattr(
        torch.hub, "load_state_dict_from_url", lambda *a, **k: pytest.fail("download")
    )
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


# --------------------------------------------------------------------------------------- arithmetic


def test_frechet_distance_of_two_gaussians_is_the_closed_form():
    a = gaussian([0.0, 1.0, 2.0], [[1.0, 0, 0], [0, 2, 0], [0, 0, 3]])
    b = gaussian([1.0, 1.0, 4.0], [[3.0, 0, 0], [0, 2, 0], [0, 0, 1]], count=80, seed=1)
    # |m1 - m2|^2 + sum (s1 - s2)^2
    assert frechet(a, b) == pytest.approx((1 + 4) + (4 + 0 + 4), rel=1e-9)

    roots = torch.tensor([[1.0, 0.5], [0, 1]]).double(), torch.tensor([[2.0, 0], [-1, 1]]).double()
    # they do not commute; for 2x2, tr sqrt(M) = sqrt(tr M + 2 sqrt(det M))
    c1, c2 = (r @ r.T for r in roots)
    cross = c1 @ c2
    expected = c1.trace() + c2.trace() - 2 * (cross.trace() + 2 * cross.det().sqrt()).sqrt()
    samples = (gaussian([5.0, 5.0], r.tolist(), seed=i) for i, r in enumerate(roots))
    assert frechet(*samples) == pytest.approx(expected.item(), rel=1e-9)


def test_equal_sets_are_at_distance_zero_even_when_they_are_few():
    few = gaussian([0.0] * 8, torch.eye(8).tolist(), count=200)[:5]
    assert frechet(few, few.flip(0)) == pytest.approx(0, abs=1e-6 * few.square().sum().item())


def test_frechet_of_fewer_pictures_than_dimensions_is_torch_fidelitys():
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 16, generator=random).double() + n for n in (5, 7))
    theirs = fid_statistics_to_metric(*map(fid_features_to_statistics, (a, b)), verbose=False)
    assert frechet(a, b) == pytest.approx(*theirs.values(), rel=1e-6)


def test_kid_is_the_unbiased_mmd_written_out():
    a, b = (
        gaussian([0.0, 0.0], [[1.0, 0], [0, 1]], count=6),
        gaussian([1.0, 0.0], [[1.0, 0], [1, 1]], count=6, seed=1),
    )
    k = [(x @ y.T / 2 + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))]
    within = [(m.sum() - m.trace()) / (6 * 5) for m in k[:2]]
    assert kid(a, b) == pytest.approx((within[0] + within[1] - 2 * k[2].mean()).item(), rel=1e-9)


def test_statistics_are_float64_whatever_the_features_are():
    a, b = (
        gaussian([1000.0, 0.0], [[1.0, 0], [0, 1]]).float(),
        gaussian([1000.0, 1.0], [[1.0, 0], [0, 1]], seed=1).float(),
    )
    assert frechet(a, b) == frechet(a.double(), b.double())


# ----------------------------------------------------------------------------------------- networks


class TinyExtractor(torch_fidelity.FeatureExtractorBase):
    """Three colour means and three contrasts, as a registered extractor of torch-fidelity."""

    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list():
        return ("6",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "6"

    def forward(self, x):
        assert x.dtype == torch.uint8 and x.shape[1] == 3
        x = x.float() / 255
        return (torch.cat([x.mean((2, 3)), x.std((2, 3))], 1),)


class Pictures(torch.utils.data.Dataset):
    def __init__(self, pictures):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, i):
        return torch.from_numpy(self.pictures[i]).permute(2, 0, 1)


def test_fid_and_kid_equal_torch_fidelitys_own_run():
    """Fid and kid equal torch fidelitys own run on a registered extractor."""
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
    from torch_fidelity.utils import create_feature_extractor

    name, sr, hr = "tiny-of-ldm-dream", photos(9, bright=200), photos(9, seed=1)
    torch_fidelity.register_feature_extractor(name, TinyExtractor)
    try:
        theirs = torch_fidelity.calculate_metrics(
            input1=Pictures(sr), input2=Pictures(hr), feature_extractor=name, fid=True, kid=True,
            kid_subset_size=9, kid_subsets=1, batch_size=1, cuda=False, save_cpu_ram=True, cache=False, verbose=False,
        )  # fmt: skip
        extractor = create_feature_extractor(name, ["6"], cuda=False, verbose=False)
    finally:
        FEATURE_EXTRACTORS_REGISTRY.pop(name)
    ours = SetMetric("fid", lambda x: extractor(x)[0], "tiny")
    found = ours.compare(
        *(torch.stack([ours.features(p) for p in pictures]) for pictures in (sr, hr))
    )
    assert found.keys() == {"fid", "kid_x1e3"}
    assert (
        found["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)
        and found["fid"] > 0.01
    )
    assert found["kid_x1e3"] == pytest.approx(
        1e3 * theirs["kernel_inception_distance_mean"], rel=1e-4
    )


def test_inception_from_a_file_gives_torch_fidelitys_features(
    monkeypatch, tmp_path, nothing_cached
):
    from torch_fidelity.feature_extractor_inceptionv3 import (
        FeatureExtractorInceptionV3 as Inception,
    )

    with monkeypatch.context() as patch:  # random weights instead of a download
        patch.setattr(
            "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url",
            lambda *a, **k: {},
        )
        patch.setattr(Inception, "load_state_dict", lambda *a, **k: None)
        theirs = Inception("inception-v3-compat", ["2048"])
    cached = tmp_path / "hub/checkpoints" / distributions.INCEPTION
    cached.parent.mkdir(parents=True)
    torch.save(theirs.state_dict(), cached)
    picture = photos(1)[0]
    expected = theirs(torch.from_numpy(picture).permute(2, 0, 1)[None])[0][0]
    metric = load_inception()
    assert metric.name == "fid" and torch.equal(metric.features(picture), expected.double())
    torch.save({"fc.weight": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(MetricUnavailable, match="other.pth: holds another network"):
        load_inception(tmp_path / "other.pth")


def test_a_file_that_holds_more_than_tensors_never_reaches_torch_fidelity(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "torch_fidelity.utils.create_feature_extractor",
        lambda *a, **k: pytest.fail("it unpickles anything"),
    )
    torch.save({"fc.weight": Pictures([])}, tmp_path / "code.pth")
    with pytest.raises(MetricUnavailable, match="code.pth: is no whole torch file of tensors"):
        load_inception(tmp_path / "code.pth")


@pytest.mark.parametrize(
    ("net", "name", "last_relu", "dimensions"),
    [("alex", "alexnet", 11, 256), ("vgg", "vgg16", 29, 512)],
)
def test_the_trunks_features_are_the_mean_of_its_last_relu(
    tmp_path, net, name, last_relu, dimensions
):
    picture = photos(1)[0]
    torch.save(state := random_weights(name), tmp_path / "trunk.pth")
    with torch.device("meta"):
        layers = getattr(torchvision.models, name)(weights=None).features
    layers.load_state_dict({k.removeprefix("features."): v for k, v in state.items()}, assign=True)
    assert isinstance(layers[last_relu], torch.nn.ReLU) and isinstance(
        layers[last_relu + 1], torch.nn.MaxPool2d
    )
    as_trained = v2.Compose([
        v2.ToDtype(torch.float32, scale=True),
        v2.Resize((224, 224), antialias=True),
        v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ])  # fmt: skip
    with torch.no_grad():
        x = as_trained(torch.from_numpy(picture).permute(2, 0, 1))[None]
        expected = layers[: last_relu + 1](x).mean((2, 3))[0]
    metric = load_trunk(net, tmp_path / "trunk.pth")
    torch.testing.assert_close(metric.features(picture), expected.double(), rtol=1e-5, atol=1e-6)
    assert metric.name == f"frechet_{name}" and expected.shape == (dimensions,)


def test_the_trunk_tells_a_changed_set_from_the_same_set(alexnet_file):
    metric = load_trunk("alex", alexnet_file)
    a, b = (
        torch.stack([metric.features(p) for p in pictures])
        for pictures in (photos(4), photos(4, bright=128))
    )
    assert (
        abs(metric.compare(a, a)["frechet_alexnet"])
        < 1e-3 * metric.compare(b, a)["frechet_alexnet"]
    )


# -------------------------------------------------------------------------------- names and reasons


def test_without_inception_weights_no_number_is_called_fid(alexnet_file, nothing_cached):
    metric, absent = load_set_metric(None, "alex", alexnet_file)
    assert metric.name == "frechet_alexnet" and "NOT FID" in metric.source
    assert absent.keys() == {"fid", "kid_x1e3"} and distributions.INCEPTION in absent["fid"]


def test_without_any_weights_each_file_is_named(nothing_cached, tmp_path):
    metric, absent = load_set_metric(None, "vgg", None)
    assert metric is None and "vgg16-*.pth" in absent["frechet_vgg16"]
    assert "none.pth: no such file" in load_set_metric(tmp_path / "none.pth", "vgg", None)[1]["fid"]


def test_weights_of_another_network_are_refused(alexnet_file):
    with pytest.raises(MetricUnavailable, match="this is no vgg network"):
        load_trunk("vgg", alexnet_file)


def test_without_torch_fidelity_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    for call in (load_inception, lambda: kid(torch.ones(2, 2), torch.ones(2, 2))):
        with pytest.raises(MetricUnavailable, match=r"ldm_dream\[eval\]"):
            call()


def test_one_picture_is_no_set():
    with pytest.raises(MetricUnavailable, match="at least 2 pictures"):
        SetMetric("frechet_alexnet", None, "").compare(torch.ones(1, 3), torch.ones(1, 3))


def test_the_protocol_says_when_pictures_are_too_few_and_how_kid_samples():
    metric = SetMetric("fid", None, "features")
    assert (
        "ill-conditioned" in metric.describe(2048, 2048)["fid"]
        and "ill-conditioned" not in metric.describe(2049, 2048)["fid"]
    )
    assert "1 subset(s) of 14" in metric.describe(14, 2048)["kid_x1e3"]
    assert "100 subset(s) of 1000" in metric.describe(1001, 2048)["kid_x1e3"]
