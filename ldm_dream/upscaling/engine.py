"""Engine: what the upscaler calls of a model, of whatever kind it is, and what a user may choose for
each call.

An engine makes pixels of pixels, `scale` times as large, in one piece or in tiles. The upscaler
around it does the rest: types, borders, colours, sizes, memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypedDict

import torch
from torch import Tensor

from ldm_dream.denoiser import sent
from ldm_dream.sampler import LARGEST_SEED
from ldm_dream.upscaling.colors import COLOR_FIXES
from ldm_dream.upscaling.defaults import BATCH_SIZE, MAX_PIXELS, TILE_PAD
from ldm_dream.upscaling.devices import UpscaleError
from ldm_dream.upscaling.pictures import Frame, Source
from ldm_dream.upscaling.sizes import Size, check_whole
from ldm_dream.upscaling.tiling import Tiles
from ldm_dream.upscaling.watch import Watch

# -> the rows of all that a model makes, band by band, [B, 3, h, W] in about [-1, 1]
Made = Callable[[], Iterator[Tensor]]


@dataclass(frozen=True)
class Options:
    """How one picture is upscaled. Raises UpscaleError.

    steps, sampler, color_fix: None = the model's. seed: same seed, same picture, for every batch
    size up to float rounding; None = 0. tile, tile_pad: LR pixels, rounded up to whole attention
    windows; tile=None is automatic. batch_size: tiles at a time. color_fix: none, wavelet, adain (in
    tiles it computes twice, since it wants the mean of the whole result first). max_pixels: of the
    result. width, height, megapixels: of the result, instead of a scale (`sizes.Size`).
    native_scale: the network works at that size itself, whatever scale it was trained for (SR3 at 2,
    3, 5 in DREAM's Table 4); without, it works at its own and the result is resized.
    """

    steps: int | None = None
    sampler: str | None = None
    seed: int | None = None
    tile: int | None = None
    tile_pad: int = TILE_PAD
    batch_size: int = BATCH_SIZE
    color_fix: str | None = None
    max_pixels: int = MAX_PIXELS
    width: int | None = None
    height: int | None = None
    megapixels: float | None = None
    native_scale: bool = False

    def __post_init__(self) -> None:
        for name, least in {"tile_pad": 0, "batch_size": 1, "max_pixels": 1}.items():
            check_whole(name, getattr(self, name), least)
        for name, least in {"steps": 1, "seed": 0, "tile": 1}.items():
            if (value := getattr(self, name)) is not None:
                check_whole(name, value, least)
        if self.seed is not None and self.seed > LARGEST_SEED:
            raise UpscaleError(f"seed={self.seed} is not possible; give one below 2^64.")
        if not isinstance(self.native_scale, bool):
            raise UpscaleError(f"native_scale={self.native_scale!r} is neither True nor False.")
        if self.sampler is not None and not isinstance(self.sampler, str):
            raise UpscaleError(f"sampler={self.sampler!r} is unknown; give the name of one.")
        if self.color_fix is not None and self.color_fix not in tuple(COLOR_FIXES):
            raise UpscaleError(
                f"color_fix={self.color_fix!r} is unknown; use one of {', '.join(COLOR_FIXES)}."
            )

    @property
    def runs(self) -> int:
        """How often each tile is made: adain measures first."""
        return 2 if self.color_fix == "adain" else 1

    def asks_for_size(self, scale: float | None) -> bool:
        """Whether a size is asked for here or by a scale, or left to the model."""
        return (scale, self.width, self.height, self.megapixels) != (None,) * 4

    def size(self, own: float, scale: float | None = None) -> Size:
        """How large a result is to be; own: the scale where nothing is asked for. Raises
        UpscaleError.
        """
        scale = scale if self.asks_for_size(scale) else own
        return Size(scale, self.width, self.height, self.megapixels)


class Choices(TypedDict, total=False):
    """The fields of Options as keywords of a call, for type checkers and editors."""

    steps: int | None
    sampler: str | None
    seed: int | None
    tile: int | None
    tile_pad: int
    batch_size: int
    color_fix: str | None
    max_pixels: int
    width: int | None
    height: int | None
    megapixels: float | None
    native_scale: bool


class Engine(ABC):
    """A model on a device, in a precision.

    scale: HR pixels an LR pixel. factor: HR pixels a pixel of the grid that tiles lie on.
    multiple, align: pixels of that grid. Sides of a picture made in one piece are multiples of the
    first; tiles begin and end on multiples of the second. context: LR pixels of mirrored context on
    each side of a picture. color_fix: where none is asked for. stoppable: not only between calls of
    its networks, but also within; False where these are compiled or recorded. sees_enlarged: its
    networks take the enlarged picture.
    """

    factor: int
    multiple: int
    align: int
    context: int
    color_fix: str
    stoppable: bool
    sees_enlarged: bool

    def __init__(self, scale: int, device: torch.device, dtype: torch.dtype):
        self.scale, self.device, self.dtype = scale, device, dtype

    def makes(self, scale: float, asked: bool) -> bool:
        """Whether the model itself takes a whole picture as it is and enlarges it by this scale;
        asked: also one that it was not trained for.
        """
        return False

    def settled(self, how: Options) -> Options:
        """With the model's own choice where none was made, as a report tells it."""
        return replace(how, color_fix=how.color_fix or self.color_fix)

    @abstractmethod
    def calls(self, how: Options) -> int:
        """Network calls a tile, which `watch` counts. Raises UserError for options that are not
        possible.
        """

    @abstractmethod
    def whole(self, frame: Frame, how: Options, watch: Watch) -> Made:
        """In one piece, which stays on the device. frame: with the enlarged picture if it sees it."""

    @abstractmethod
    def in_tiles(self, source: Source, tiles: Tiles, how: Options, watch: Watch) -> Made:
        """Band by band; on the device are tiles and, of each step, about a row of them."""

    def give_memory_back(self) -> bool:
        """Gives back what only saves time; -> whether there was any."""
        return False

    def _autocast(self) -> torch.autocast:
        """Without its cache of weights: a weight is used once a call, and graphs must own theirs."""
        lower = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=lower, cache_enabled=False)


def on_device(x: Tensor, device: torch.device) -> Tensor:
    """In the layout of the networks."""
    return sent(x, device).contiguous(memory_format=torch.channels_last)
