"""DISTS (Ding et al. 2020, arXiv 2004.07728): likeness of structure and of texture over six layers of
VGG16, where a texture may look another way and still be alike.

The published weights of the layers, alpha and beta, come from the wheel DISTS_pytorch (MIT), those
of VGG16 from torchvision's file. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_dream.scoring.metrics import MetricUnavailable, read_weights, trunk_weights

NAME = "dists"
TEXT = (
    "VGG16 and the published alpha and beta; uint8 RGB mapped to [0, 1] at its own size, no "
    "border cut"
)
_FLOOR = 1e-6  # c1 and c2 of Eq. 5 and 6


class Dists(nn.Module):
    """Two [B, 3, H, W] in [-1, 1] -> distances [B]. features: VGG16's layers up to its last pooling.
    alpha, beta: [1, 1475, 1, 1] each.
    """

    alpha: Tensor  # [1475], with beta of sum 1
    beta: Tensor
    mean: Tensor  # [3, 1, 1], what VGG16 was trained with
    std: Tensor
    blur: Tensor  # [3, 3]

    def __init__(self, features: nn.Sequential, alpha: Tensor, beta: Tensor):
        super().__init__()
        self.features, total = features, alpha.sum() + beta.sum()
        side = torch.tensor([0.25, 0.5, 0.25])
        buffers = {
            "alpha": alpha.flatten() / total,
            "beta": beta.flatten() / total,
            "mean": torch.tensor([0.485, 0.456, 0.406])[:, None, None],
            "std": torch.tensor([0.229, 0.224, 0.225])[:, None, None],
            "blur": side * side[:, None],
        }
        for name, value in buffers.items():
            self.register_buffer(name, value)
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        textures, structures = [], []
        for a, b in zip(self._layers(x), self._layers(y)):
            mean_a, mean_b = (z.mean((2, 3)) for z in (a, b))
            var_a, var_b = (z.var((2, 3), correction=0) for z in (a, b))
            both = (a * b).mean((2, 3)) - mean_a * mean_b
            textures.append(
                (2 * mean_a * mean_b + _FLOOR) / (mean_a.square() + mean_b.square() + _FLOOR)
            )
            structures.append((2 * both + _FLOOR) / (var_a + var_b + _FLOOR))
        return 1 - torch.cat(textures, 1) @ self.alpha - torch.cat(structures, 1) @ self.beta

    def _layers(self, x: Tensor) -> Iterator[Tensor]:
        """The picture in [0, 1], then the last activation before each pooling: [B, C, h, w]; one at a
        time, for large pictures.
        """
        yield (x + 1) / 2
        h = ((x + 1) / 2 - self.mean) / self.std
        for module in self.features:
            if isinstance(module, nn.MaxPool2d):
                yield h
                h = self._halved(h)
            else:
                h = module(h)

    def _halved(self, h: Tensor) -> Tensor:
        """l2 pooling (Eq. 1): a shift of the picture makes no jumps."""
        kernel = self.blur.to(h).expand(h.shape[1], 1, 3, 3)
        power = F.conv2d(h.square(), kernel, stride=2, padding=1, groups=h.shape[1])
        return (power + 1e-12).sqrt()


def load_dists(vgg_weights: str | Path | None = None) -> Dists:
    """vgg_weights: state dict with torchvision's names; None takes torchvision's file from its
    cache. Raises MetricUnavailable without it or without a package.
    """
    found = find_spec("DISTS_pytorch")
    here = found.submodule_search_locations if found else None
    if not here or find_spec("torchvision") is None:
        missing = "torchvision" if here else "DISTS_pytorch"
        raise MetricUnavailable(
            f"DISTS needs the package {missing}; install it with: pip install 'ldm_dream[eval]'."
        )
    from torchvision.models import vgg16

    heads = read_weights(Path(here[0]) / "weights.pt")
    path, state = trunk_weights("vgg", vgg_weights)
    with torch.device("meta"):  # the weights are given
        features = nn.Sequential(*vgg16().features.children())
    own = {f"features.{name}": name for name in features.state_dict()}
    try:
        given = {name: state[theirs] for theirs, name in own.items()}
        features.load_state_dict(given, assign=True)
    except (KeyError, RuntimeError):
        raise MetricUnavailable(
            f"{path}: is no vgg16 with torchvision's names; give that file."
        ) from None
    return Dists(features, heads["alpha"], heads["beta"])


def dists_or_reason(vgg_weights: str | Path | None = None) -> tuple[Dists | None, str]:
    """`load_dists`, or None and why it is absent."""
    try:
        return load_dists(vgg_weights), ""
    except MetricUnavailable as reason:
        return None, str(reason)
