"""A network that makes the large picture in one pass, without noise, as an engine of the upscaler.

lr -> network -> hr          in tiles: blended as every pass of a diffusion model is
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn

from ldm_dream.denoiser import sent
from ldm_dream.dtypes import DTYPES, fastest, name_of
from ldm_dream.upscaling.devices import UpscaleError
from ldm_dream.upscaling.engine import Engine, Made, Options
from ldm_dream.upscaling.peers import PeerModel
from ldm_dream.upscaling.pictures import Frame, Source
from ldm_dream.upscaling.tiling import Pass, Tile, Tiles, wavefront
from ldm_dream.upscaling.watch import Watch

# architectures in spandrel 0.4 that take one picture at a time
ALONE = ("DRUNet", "DnCNN", "IPT")


class OnePass(Engine):
    """A whole picture gives what its network alone gives: no mirrored context, no colour fix, since
    such networks were trained to the picture's border and keep its colours. spandrel pads what is
    below the least size or no multiple that the network takes.

    model: its network is moved to `device`, or copied there for a dtype other than fp32, in which
    all of it then computes. compile: torch.compile.
    """

    color_fix = "none"
    context = 0
    sees_enlarged = False

    def __init__(
        self, model: PeerModel, device: torch.device, dtype: torch.dtype, compile: bool = False
    ):
        """Raises UpscaleError for a dtype that the network does not support."""
        super().__init__(model.net.scale, device, dtype)
        if not _supports(model, dtype):
            raise UpscaleError(
                f"dtype={name_of(dtype)!r}: a model of {model.net.architecture.name} does not compute in it; "
                "use auto or fp32."
            )
        self.name = model.path.name
        self.net = model.net if dtype == torch.float32 else deepcopy(model.net.cpu())
        self.net.to(device, dtype)
        self.factor = self.scale  # tiles lie on LR pixels
        self.multiple = math.lcm(self.net.size_requirements.multiple_of, _window(self.net.model))
        self.align = self.multiple
        if compile:
            self.net.model.compile(dynamic=True)
        self.stoppable = not compile

    def makes(self, scale: float, asked: bool) -> bool:
        return scale == self.scale

    def calls(self, how: Options) -> int:
        """Raises UpscaleError for what would have no effect."""
        given = [name for name in ("steps", "sampler", "seed") if getattr(how, name) is not None]
        if given:
            raise UpscaleError(
                f"{' and '.join(given)}: no effect on {self.name}, which makes a picture in one "
                "pass, without noise; leave it out."
            )
        return 1

    def whole(self, frame: Frame, how: Options, watch: Watch) -> Made:
        made = [watch.counts(self._enlarged)(frame.source.whole(frame.source.size))]
        return lambda: iter(made)

    def in_tiles(self, source: Source, tiles: Tiles, how: Options, watch: Watch) -> Made:
        def cut(tile: Tile) -> Tensor:
            return source.one(tile.picture).part(source.size, tile.rows, tile.columns)

        def bands() -> Iterator[Tensor]:
            enlarge = watch.counts(self._enlarged)
            tiled = Pass(tiles, enlarge, how.batch_size, source.count)
            return wavefront(tiles, [lambda i, _: tiled.band(i, cut)])

        return bands

    def _enlarged(self, x: Tensor) -> Tensor:
        """[n, 3, h, w] -> [n, 3, h * scale, w * scale], both in about [-1, 1]. A network of grey
        pictures sees each colour as one.
        """
        lr = (sent(x, self.device) / 2 + 0.5).clamp(0, 1).to(self.dtype)
        pictures = lr.reshape(-1, self.net.input_channels, *lr.shape[-2:])
        groups = pictures.split(1) if self.net.architecture.id in ALONE else (pictures,)
        made = torch.cat([self.net(group) for group in groups])
        return made.reshape(len(x), 3, *made.shape[-2:]).float() * 2 - 1


def _window(network: nn.Module) -> int:
    """Side of its attention windows, LR pixels: in tiles they lie as in the whole picture. 1 where it
    names none.
    """
    side = getattr(network, "window_size", 1)
    return side if isinstance(side, int) else 1


def auto_dtype(model: PeerModel, device: torch.device) -> torch.dtype:
    """Where the network supports it: the fastest of a CPU; elsewhere fp16, which rounds less, or bf16.
    Else fp32.
    """
    if device.type == "cpu":
        wanted = (DTYPES[fastest(device)],)
    else:
        wanted = (torch.float16, torch.bfloat16)
    return next((dtype for dtype in wanted if _supports(model, dtype)), torch.float32)


def _supports(model: PeerModel, dtype: torch.dtype) -> bool:
    supported = {
        torch.float16: model.net.supports_half,
        torch.bfloat16: model.net.supports_bfloat16,
    }
    return supported.get(dtype, True)
