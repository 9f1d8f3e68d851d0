"""Upscaler: a picture in, the same kind of picture out, larger.

    picture -> pixels and mirrored border -> engine: x scale -> colour fix -> wanted size
            -> the picture's own type

The picture is mirrored on all sides first, up to whole attention windows, and cropped afterwards,
so every size works and networks meet no border where the picture has one. A small picture takes
this way in one piece. Another goes in bands (`in_tiles.py`): of it only the LR picture and the
result are held whole, both in the depth they came in, and accelerator memory depends on the size
of tiles, on how many are made at a time, and on the picture's width. Colours and size are set in
strips either way, which changes no number. What a model is like is its engine's matter
(`diffusion.py`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_dream.data.images import ImageError
from ldm_dream.data.resize import rows_needed
from ldm_dream.denoiser import sent
from ldm_dream.hub import upload
from ldm_dream.upscaling.devices import UpscaleError, device_named
from ldm_dream.upscaling.engine import Made, Options
from ldm_dream.upscaling.hidden import filled
from ldm_dream.upscaling.models import Model, engine_of, load
from ldm_dream.upscaling.peers import PeerModel
from ldm_dream.upscaling.pictures import (
    COLOR_FIXES,
    REACH,
    Canvas,
    Picture,
    Pixels,
    Source,
    in_columns,
    resized,
    unpack,
)  # fmt: skip
from ldm_dream.upscaling.tiling import Tiles
from ldm_dream.upscaling.watch import PREVIEW, Callback, Watch

log = logging.getLogger(__name__)

DEFAULT_MODEL = "dream-latent-x4-tiny"
# LR pixels: tile=None takes a picture of up to 256 x 256 pixels whole, a larger one in tiles of
# that side; a very large one in smaller tiles, since its rows of tiles take memory too
AUTO_TILE, VERY_LARGE, SMALL_TILE = 256, 2**22, 128
STRIP, MIN_STRIP = 2**20, 32  # HR pixels and rows of a strip in which colours and size are set


class Upscaler:
    """Callable on pictures. `Upscaler.from_pretrained("dream-latent-x4-tiny")(image, scale=4)`.

    model: as for `Diffusion`, of another project as for `OnePass`.
    """

    def __init__(
        self, model: Model, device: str = "auto", dtype: str = "auto", compile: bool = False
    ):
        self.model, self.device = model, device_named(device)
        self.engine = engine_of(model, self.device, dtype, compile)
        self.dtype = self.engine.dtype

    @property
    def scale(self) -> int:
        """The model's own."""
        return self.engine.scale

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir: str | Path = DEFAULT_MODEL,
        device: str = "auto",
        dtype: str = "auto",
        compile: bool = False,
    ) -> Upscaler:
        """A bundled model by name, a model folder, one of the Hugging Face hub (`hf:owner/name`), or
        a file of another project (.pth, .safetensors) whose network spandrel knows.

        device: auto, cpu, cuda, cuda:N. dtype: auto, fp32, bf16, fp16 (auto: fp32 on the CPU, else
        bf16 where the device has it, else fp16; of another project, what its network bears). Raises
        ModelError, HubError, UpscaleError, CheckpointImportError.
        """
        return cls(load(name_or_dir), device, dtype, compile)

    def push_to_hub(self, repo_id: str, private: bool = False) -> str:
        """Send the model folder this came from to owner/name of the Hugging Face hub; -> its
        address. Raises HubError, UpscaleError.
        """
        if isinstance(self.model, PeerModel):
            raise UpscaleError(
                f"{self.model.path}: a file of another project is not sent from here."
            )
        if self.model.folder is None:
            raise UpscaleError(
                "this upscaler was not loaded from a folder; "
                "save the model with model_folder.save_model first."
            )
        return upload(self.model.folder, repo_id, private)

    @torch.no_grad()
    def __call__(
        self,
        image: Picture,
        scale: float | None = None,
        callback: Callback | None = None,
        **options: Any,
    ) -> Picture:
        """A picture -> the same type and bit depth (see `pictures.unpack`), round(H * scale) x
        round(W * scale).

        scale: any number above 0; None = the model's own. The model enlarges by its own scale;
        another size is made from that by bicubic, so a scale above the model's adds no further
        detail. IDM enlarges by any scale from 1 to its `max_scale` itself, where the picture is
        taken whole. callback(done, total, preview): after each network call and a few times a
        second, preview() being the picture as far as it is, or None; returning False stops.
        options: see `Options`. Alpha is enlarged by bicubic. Raises UpscaleError or SamplerError
        for an option, ImageError for a picture that is not possible, Stopped.
        """
        how = Options(**options)
        scale = self.engine.scale if scale is None else scale
        if not (isinstance(scale, int | float) and math.isfinite(scale) and scale > 0):
            raise UpscaleError(
                f"scale={scale} is not possible; give a number above 0, "
                f"for example {self.engine.scale}."
            )
        self.engine.calls(how)  # options that are not possible end here
        pixels = unpack(image)
        size = max(1, round(pixels.size[0] * scale)), max(1, round(pixels.size[1] * scale))
        if size[0] * size[1] > how.max_pixels:
            raise ImageError(
                f"the result has {size[0] * size[1]} pixels, more than the {how.max_pixels} "
                "allowed; cut it first, or raise max_pixels (--max-pixels)."
            )
        if pixels.has_alpha:
            pixels = filled(pixels)
        canvas, watch = Canvas(pixels, size), Watch(callback)
        with watch.listening(self.engine.stoppable):
            if self._is_native(scale, pixels, how.tile):
                try:
                    frame = Frame(Source(pixels), size, 0, size)
                    whole = partial(self._whole, frame, how, canvas, watch)
                    self._with_room(whole, frame, how, canvas)
                    return canvas.picture()
                except torch.OutOfMemoryError:
                    log.warning("out of memory on %s: enlarged in tiles instead.", self.device)
            self._enlarge(pixels, how, canvas, watch)
        return canvas.picture()

    def _is_native(self, scale: float, pixels: Pixels, tile: int | None) -> bool:
        """Whether the network makes this size itself, of the picture as it is."""
        return tile is None and _is_small(pixels) and self.engine.makes(scale)

    def _enlarge(self, pixels: Pixels, how: Options, canvas: Canvas, watch: Watch) -> None:
        """By the model's own scale, whole or in tiles, as large as memory allows."""
        scale, factor, align = self.engine.scale, self.engine.factor, self.engine.multiple
        edge = self.engine.context
        source = Source(pixels, edge, factor * align // math.gcd(factor * align, scale))
        size = source.size[0] * scale, source.size[1] * scale
        inner = pixels.size[0] * scale, pixels.size[1] * scale
        frame = Frame(source, size, edge * scale, inner)
        small = how.tile is None and _is_small(pixels)
        tile = max(source.size) if small else (how.tile or _auto_tile(pixels)) + 2 * edge
        side, pad = tile * scale / factor, how.tile_pad * scale / factor
        plan_tiles = partial(Tiles.plan, size[0] // factor, size[1] // factor, side, pad, align)
        tiles = None if small and source.count <= how.batch_size else plan_tiles()
        while True:
            if tiles is None:
                make = partial(self._whole, frame, how, canvas, watch)
            else:
                make = partial(self._in_tiles, source, tiles, how, canvas, watch)
            try:
                return self._with_room(make, frame, how, canvas)
            except torch.OutOfMemoryError:
                tiles = self._smaller(tiles or plan_tiles())

    def _with_room(
        self, make: Callable[[], Made], frame: Frame, how: Options, canvas: Canvas
    ) -> None:
        """Makes and draws; where memory runs out, once more without what only saves time, if there
        is any.
        """
        try:
            return self._draw(make(), frame, how, canvas)
        except torch.OutOfMemoryError:
            if not self.engine.give_memory_back():
                raise
        log.warning("out of memory on %s: goes on without recorded CUDA graphs.", self.device)
        self._draw(make(), frame, how, canvas)

    def _smaller(self, tiles: Tiles) -> Tiles:
        smaller = tiles.halved()
        if smaller is None:
            raise UpscaleError(
                f"{self.device} has too little memory for the smallest tiles; "
                "lower batch_size or use the CPU."
            )
        log.warning(
            "out of memory on %s: tiles of %d latent pixels become tiles of %d.",
            self.device, max(tiles.shape), max(smaller.shape),
        )  # fmt: skip
        return smaller

    def _whole(self, frame: Frame, how: Options, canvas: Canvas, watch: Watch) -> Made:
        watch.begin(frame.source.count * self.engine.calls(how), partial(canvas.look, PREVIEW))
        return self.engine.whole(frame.source, frame.size, how, watch)

    def _in_tiles(
        self, source: Source, tiles: Tiles, how: Options, canvas: Canvas, watch: Watch
    ) -> Made:
        runs = 2 if how.color_fix == "adain" else 1  # which measures first
        count = sum(len(tiles.row(i, source.count)) for i in range(len(tiles.bands)))
        watch.begin(runs * count * self.engine.calls(how), partial(canvas.look, PREVIEW))
        return self.engine.in_tiles(source, tiles, how, watch)

    def _draw(self, made: Made, frame: Frame, how: Options, canvas: Canvas) -> None:
        """Colours, then the wanted size, strip by strip."""
        strips, height = frame.strips(canvas.size[0]), frame.inner[0]
        needs = [rows_needed(height, canvas.size[0], strip) for strip in strips]
        wants = [slice(max(0, r.start - REACH), min(height, r.stop + REACH)) for r in needs]
        fix = COLOR_FIXES[how.color_fix or self.engine.color_fix](
            lambda: frame.pairs(made(), frame.strips(height))
        )
        for strip, need, want, pair in zip(strips, needs, wants, frame.pairs(made(), wants)):
            sr = in_columns(fix, *pair)[..., need.start - want.start : need.stop - want.start, :]
            if not sr.isfinite().all():
                raise ImageError(
                    f"the model's result holds NaN or infinity in {self.dtype}; try dtype fp32."
                )
            sr = (sr.clamp(-1, 1) + 1) / 2
            canvas.write(strip, resized(sr, need.start, frame.inner, canvas.size, strip))


@dataclass(frozen=True)
class Frame:
    """Where the result lies in what the model makes.

    size: of all that it makes of `source`. edge: pixels of mirrored context at the top and left.
    inner: size of the result in it.
    """

    source: Source
    size: tuple[int, int]
    edge: int
    inner: tuple[int, int]

    def strips(self, height: int) -> list[slice]:
        """All rows of a result of `height` rows, in strips that hold about STRIP pixels here."""
        most = max(MIN_STRIP, STRIP // self.inner[1]) * height // self.inner[0]
        step = max(1, most)
        return [slice(top, min(top + step, height)) for top in range(0, height, step)]

    def pairs(
        self, bands: Iterator[Tensor], wants: Iterable[slice]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """bands: rows of all that the model makes. wants: rows of the result, downwards -> these
        rows of it, and of the enlarged LR picture, [B, 3, h, W].
        """
        columns = slice(self.edge, self.edge + self.inner[1])
        moved = [slice(r.start + self.edge, r.stop + self.edge) for r in wants]
        for rows, sr in zip(moved, cut_anew(bands, moved)):
            base = self.source.part(self.size, rows, columns).clamp(-1, 1)
            yield sr[..., columns], sent(base, sr.device)


def cut_anew(bands: Iterator[Tensor], wants: Iterable[slice]) -> Iterator[Tensor]:
    """Bands of rows, [..., h, W], from row 0 on -> the rows of each of `wants`, which go downwards
    and may overlap.
    """
    held: list[tuple[int, Tensor]] = []  # what is still needed, and the row where it begins
    bottom = 0
    for want in wants:
        while bottom < want.stop:
            # copies, since a few rows that are needed would keep the whole band
            held = [(max(y, want.start), _rows(x, y, want).clone()) for y, x in held]
            held.append((bottom, next(bands)))
            bottom += held[-1][1].shape[-2]
        yield torch.cat([_rows(x, y, want) for y, x in held], -2)


def _rows(x: Tensor, top: int, want: slice) -> Tensor:
    """Those of `want` that are in x, whose first row is `top`."""
    return x[..., max(0, want.start - top) : max(0, want.stop - top), :]


def _auto_tile(pixels: Pixels) -> int:
    return AUTO_TILE if pixels.size[0] * pixels.size[1] <= VERY_LARGE else SMALL_TILE


def _is_small(pixels: Pixels) -> bool:
    return pixels.size[0] * pixels.size[1] <= AUTO_TILE**2
