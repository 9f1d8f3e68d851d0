"""Distances between two sets of pictures: FID and KID on torch-fidelity's Inception, or a Frechet
distance without those weights.

A network turns each picture into one feature vector; the sets are compared by mean m and covariance
C of these vectors (Frechet distance of two Gaussians, Heusel et al. 2017, Eq. 6) or by a cubic
kernel (KID, Binkowski et al. 2018, Eq. 4):
    d^2 = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))
Only features of the Inception network that defines FID give a number named `fid`; those of AlexNet,
VGG16 and EfficientNet-lite0 (`lite0.py`) give `frechet_alexnet`, `frechet_vgg16` and
`frechet_efficientnet_lite0`, which compare with nothing else. Nothing is
ever downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_dream.scoring.metrics import MetricUnavailable, read_weights, trunk_weights

# torch-fidelity's name for the network that defines FID
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000  # torch-fidelity's defaults, for sets that are larger
# torchvision name, layers up to the last convolution's ReLU
_TRUNKS = {
    "alex": ("alexnet", 12),
    "vgg": ("vgg16", 30),
}
_TRUNK_SIDE = 224  # pixels, as both trunks were trained


@dataclass(frozen=True)
class SetMetric:
    """`features` of each picture, then `compare` once; `describe` is the protocol that goes with
    the numbers.

    network: uint8 [1, 3, H, W] in RGB -> [1, D]. name: of the Frechet distance; `fid` also brings
    KID.
    """

    name: str
    network: Callable[[Tensor], Tensor]
    source: str  # of the features, in words: network, layer, pooling, input size and range

    @torch.no_grad()
    def features(self, pixels: np.ndarray) -> Tensor:
        """Whole uint8 picture [H, W, 3] of any size -> float64 [D]."""
        return (
            self.network(torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous())[0]
            .double()
            .cpu()
        )

    def compare(self, sr: Tensor, hr: Tensor) -> dict[str, float]:
        """Features [N, D] and [M, D] -> {name: squared Frechet distance}, and kid_x1e3 beside fid.
        Raises MetricUnavailable.
        """
        if min(len(sr), len(hr)) < 2:
            raise MetricUnavailable(f"{self.name} compares sets; give at least 2 pictures.")
        found = {self.name: frechet(sr, hr)}
        return found | {"kid_x1e3": 1e3 * kid(sr, hr)} if self.name == "fid" else found

    def describe(self, pictures: int, dimensions: int) -> dict[str, str]:
        """Protocol of each number for sets of so many pictures with so many feature dimensions."""
        source = f"{self.source}; {pictures} pictures, whole, no border cut"
        few = f" (ill-conditioned: no more than the {dimensions} feature dimensions; compare the same pictures only)"
        texts = {
            self.name: f"squared Frechet distance, float64; {source}{few if pictures <= dimensions else ''}"
        }
        if self.name == "fid":
            size, subsets = _kid_subsets(pictures)
            texts["kid_x1e3"] = (
                f"1e3 x unbiased MMD^2, cubic kernel, {subsets} subset(s) of {size}; features of fid"
            )
        return texts


def frechet(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance of the Gaussians fitted to features [N, D] and [M, D], in float64.

    With C1 = A^T A and C2 = B^T B, tr (C1 C2)^(1/2) is the sum of the singular values of A B^T:
    exact, and in milliseconds for few pictures, where the roots of the [D, D] product take minutes.
    """
    (mean_a, root_a), (mean_b, root_b) = (_gaussian(x.double()) for x in (a, b))
    both = torch.linalg.svdvals(root_a @ root_b.T).sum()
    means = (mean_a - mean_b).square().sum()
    return float(means + root_a.square().sum() + root_b.square().sum() - 2 * both)


def _gaussian(x: Tensor) -> tuple[Tensor, Tensor]:
    """[N, D] -> mean [D], and a root R [min(N, D), D] of the covariance R^T R."""
    mean = x.mean(0)
    return mean, torch.linalg.qr((x - mean) / (len(x) - 1) ** 0.5, mode="r").R


def kid(a: Tensor, b: Tensor) -> float:
    """Mean unbiased MMD^2 with the kernel (x.y / D + 1)^3 over subsets of both sets; up to 1000
    pictures one subset, the set.
    """
    _need_fidelity()
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    size, subsets = _kid_subsets(min(len(a), len(b)))
    options = {"kid_subset_size": size, "kid_subsets": subsets, "verbose": False}
    return kid_features_to_metric(a.double(), b.double(), **options)[KEY_METRIC_KID_MEAN]


def load_inception(weights: str | Path | None = None) -> SetMetric:
    """FID and KID: torch-fidelity's Inception with the given weights or those in torch's cache.
    Raises MetricUnavailable.
    """
    _need_fidelity()
    from torch_fidelity.utils import create_feature_extractor

    cached = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION
    path = Path(weights or cached)
    if weights is None and not path.is_file():
        raise MetricUnavailable(
            f"put torch-fidelity's {INCEPTION} into {path.parent} or name that file."
        )
    read_weights(path)  # torch-fidelity unpickles anything: only what is tensors alone reaches it
    options = {"feature_extractor_weights_path": str(path), "verbose": False}
    try:
        extractor = create_feature_extractor("inception-v3-compat", ["2048"], cuda=False, **options)
    except RuntimeError:
        raise MetricUnavailable(
            f"{path}: holds another network; give torch-fidelity's {INCEPTION}."
        ) from None
    return SetMetric(
        "fid",
        lambda x: extractor(x)[0],
        "Inception-v3 2015-12-05 (torch-fidelity), 2048-d average pool, uint8 RGB resized to 299x299 (TensorFlow bilinear)",
    )


def load_trunk(net: Literal["alex", "vgg"], weights: str | Path | None = None) -> SetMetric:
    """Frechet distance on the trunk that LPIPS uses: the given weights or torchvision's cached.
    Raises MetricUnavailable.
    """
    name, layers = _TRUNKS[net]
    path, state = trunk_weights(net, weights)
    try:
        trunk = _Trunk(name, layers, state)
    except (RuntimeError, KeyError):
        raise MetricUnavailable(
            f"{path}: a layer is missing or has another shape; this is no {net} network."
        ) from None
    return SetMetric(
        f"frechet_{name}",
        trunk,
        f"NOT FID: torchvision's {name}, ReLU of the last convolution, mean over places, "
        f"uint8 RGB resized to {_TRUNK_SIDE}x{_TRUNK_SIDE} (antialiased bilinear), by ImageNet's mean and deviation",
    )


def load_set_metric(
    inception: str | Path | None, net: Literal["alex", "vgg"], trunk: str | Path | None
) -> tuple[SetMetric | None, dict[str, str]]:
    """FID and KID if their weights are here, else the trunk's stand-in, else None; and why each
    absent metric is absent.
    """
    try:
        return load_inception(inception), {}
    except MetricUnavailable as reason:
        absent = {"fid": str(reason), "kid_x1e3": "needs what fid needs."}
    try:
        return load_trunk(net, trunk), absent
    except MetricUnavailable as reason:
        return None, absent | {f"frechet_{_TRUNKS[net][0]}": str(reason)}


class _Trunk(nn.Module):
    """First `layers` layers of a torchvision network: uint8 [B, 3, H, W] -> [B, D], the mean over
    places.
    """

    def __init__(self, name: str, layers: int, state: dict[str, Tensor]):
        super().__init__()
        import torchvision.models

        with torch.device("meta"):  # no time or memory for its classifier
            self.features = getattr(torchvision.models, name)(weights=None).features[:layers]
        own = {key: state[key].float() for key in self.state_dict()}
        self.load_state_dict(own, assign=True)
        self.requires_grad_(False).eval()
        # ImageNet's, as torchvision trained
        self.mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        self.deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(
            x.float() / 255, size=(_TRUNK_SIDE, _TRUNK_SIDE), mode="bilinear", antialias=True
        )
        return self.features((x - self.mean) / self.deviation).mean((2, 3))


def _kid_subsets(pictures: int) -> tuple[int, int]:
    """(subset size, number of subsets): one subset when it is the whole set."""
    return (KID_SUBSET_SIZE, KID_SUBSETS) if pictures > KID_SUBSET_SIZE else (pictures, 1)


def _need_fidelity() -> None:
    try:
        import torch_fidelity  # noqa: F401
    except ImportError:
        raise MetricUnavailable(
            "FID and KID need torch-fidelity; install it with: pip install 'ldm_dream[eval]'."
        ) from None
