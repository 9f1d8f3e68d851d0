"""Upscaler: a picture in, the same kind of picture out, larger.

    lr -> bicubic x scale -> encode -> z_lr;  inputs from lr, z_lr -> sample z0 -> decode
       -> colour fix -> wanted size -> the picture's own type

The picture is mirrored on all sides first, up to whole attention windows, and cropped afterwards,
so every size works and networks meet no border where the picture has one. A small picture takes
this way in one piece. Another goes in bands (`in_tiles.py`): of it only the LR picture and the
result are held whole, both in the depth they came in, and accelerator memory depends on the size
of tiles, on how many are made at a time, and on the picture's width. Colours and size are set in
strips either way, which changes no number.

Symbols: f = autoencoder factor (HR pixels a latent pixel); scale = HR pixels an LR pixel.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_dream.config.model import Sampling
from ldm_dream.data.images import ImageError
from ldm_dream.data.resize import rows_needed, upsample
from ldm_dream.denoiser import Denoiser
from ldm_dream.hub import upload
from ldm_dream.model_folder import LoadedModel, load_model
from ldm_dream.networks import compile_blocks
from ldm_dream.noise import LARGEST_SEED, seeded
from ldm_dream.sampler import Sampler, Turn, plan, sample
from ldm_dream.upscaling.cuda_graphs import GraphedCall
from ldm_dream.upscaling.devices import (
    UpscaleError,
    device_named,
    dtype_named,
    on_device,
    placed,
)
from ldm_dream.upscaling.hidden import filled
from ldm_dream.upscaling.in_tiles import Calls, InTiles
from ldm_dream.upscaling.pictures import (
    COLOR_FIXES,
    REACH,
    Canvas,
    Picture,
    Pixels,
    Source,
    unpack,
)  # fmt: skip
from ldm_dream.upscaling.strips import Frame, in_columns, resized
from ldm_dream.upscaling.tiling import Tiles

log = logging.getLogger(__name__)

DEFAULT_MODEL = "dream-latent-x4-tiny"
# LR pixels: tile=None takes a picture of up to 256 x 256 pixels whole, a larger one in tiles of
# that side; a very large one in smaller tiles, since its rows of tiles take memory too
AUTO_TILE, VERY_LARGE, SMALL_TILE = 256, 2**22, 128
# LR pixels of mirrored context on each side: with 4, the border of a flat picture is as its middle
CONTEXT = 4


# -> the rows of all that a model makes, band by band, [B, 3, h, W] in about [-1, 1]
Made = Callable[[], Iterator[Tensor]]


@dataclass(frozen=True)
class Options:
    """How one picture is upscaled. Raises UpscaleError.

    steps, sampler: None = the model's. seed: same seed, same picture, for every batch size up to
    float rounding. tile, tile_pad: LR pixels, rounded up to whole attention windows; tile=None is
    automatic. batch_size: tiles at a time. color_fix: none, wavelet, adain (in tiles it samples
    twice, since it wants the mean of the whole result first). max_pixels: of the result.
    """

    steps: int | None = None
    sampler: str | None = None
    seed: int = 0
    tile: int | None = None
    tile_pad: int = 16
    batch_size: int = 1
    color_fix: str = "wavelet"
    max_pixels: int = 2**29

    def __post_init__(self) -> None:
        leasts = {"seed": 0, "tile": 1, "tile_pad": 0, "batch_size": 1, "max_pixels": 1}
        for name, least in leasts.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UpscaleError(
                    f"{name}={value} is not possible; give a whole number from {least}."
                )
        if self.seed > LARGEST_SEED:
            raise UpscaleError(f"seed={self.seed} is not possible; give one below 2^64.")
        if self.color_fix not in COLOR_FIXES:
            raise UpscaleError(
                f"color_fix={self.color_fix!r} is unknown; use one of {', '.join(COLOR_FIXES)}."
            )


class Upscaler:
    """Callable on pictures. `Upscaler.from_pretrained("dream-latent-x4-tiny")(image, scale=4)`.

    model: its modules are moved to `device` and left in eval mode, or copied there for a dtype other
    than fp32, which means autocast.
    """

    def __init__(
        self, model: LoadedModel, device: str = "auto", dtype: str = "auto", compile: bool = False
    ):
        self.model, self.run = model, model.run
        self.device = device_named(device)
        self.dtype = dtype_named(dtype, self.device)
        network = placed(model.network, self.device, self.dtype)
        self.autoencoder = placed(model.autoencoder, self.device, self.dtype)
        call: Callable[..., Tensor] = network
        if compile:
            compile_blocks(network, dynamic=True)
            if self.device.type == "cuda":
                call = GraphedCall(network)
        self.denoiser = Denoiser(
            network, model.process, self.run.condition, self.run.prediction, call
        )

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir: str | Path = DEFAULT_MODEL,
        device: str = "auto",
        dtype: str = "auto",
        compile: bool = False,
    ) -> Upscaler:
        """A bundled model by name, a model folder, or one of the Hugging Face hub (`hf:owner/name`).

        device: auto, cpu, cuda, cuda:N. dtype: auto, fp32, bf16, fp16 (auto: fp32 on the CPU, else
        bf16 where the device has it, else fp16). Raises ModelError, HubError, UpscaleError.
        """
        return cls(load_model(name_or_dir), device, dtype, compile)

    def push_to_hub(self, repo_id: str, private: bool = False) -> str:
        """Send the model folder this came from to owner/name of the Hugging Face hub; -> its
        address. Raises HubError, UpscaleError.
        """
        if self.model.folder is None:
            raise UpscaleError(
                "this upscaler was not loaded from a folder; "
                "save the model with model_folder.save_model first."
            )
        return upload(self.model.folder, repo_id, private)

    @torch.no_grad()
    def __call__(self, image: Picture, scale: float | None = None, **options: Any) -> Picture:
        """A picture -> the same type and bit depth (see `pictures.unpack`), round(H * scale) x
        round(W * scale).

        scale: any number above 0; None = the model's own. The model enlarges by its own scale;
        another size is made from that by bicubic, so a scale above the model's adds no further
        detail. IDM enlarges by any scale from 1 to its `max_scale` itself, where the picture is
        taken whole. options: see `Options`. Alpha is enlarged by bicubic. Raises UpscaleError or
        SamplerError for an option, ImageError for a picture that is not possible.
        """
        how = Options(**options)
        scale = self.run.scale if scale is None else scale
        if not (isinstance(scale, int | float) and math.isfinite(scale) and scale > 0):
            raise UpscaleError(
                f"scale={scale} is not possible; give a number above 0, "
                f"for example {self.run.scale}."
            )
        sampling = self._sampling(how)
        pixels = unpack(image)
        size = max(1, round(pixels.size[0] * scale)), max(1, round(pixels.size[1] * scale))
        if size[0] * size[1] > how.max_pixels:
            raise ImageError(
                f"the result has {size[0] * size[1]} pixels, more than the {how.max_pixels} "
                "allowed; cut it first, or raise max_pixels (--max-pixels)."
            )
        if pixels.has_alpha:
            pixels = filled(pixels)
        canvas = Canvas(pixels, size)
        if self._is_native(scale, pixels, how.tile):
            try:
                frame = Frame(Source(pixels), size, 0, size)
                self._with_room(partial(self._whole, frame, how, sampling), frame, how, canvas)
                return canvas.picture()
            except torch.OutOfMemoryError:
                log.warning("out of memory on %s: enlarged in tiles instead.", self.device)
        self._enlarge(pixels, how, sampling, canvas)
        return canvas.picture()

    def _sampling(self, how: Options) -> Sampling:
        """The model's, with what was asked for. Raises SamplerError before the work begins."""
        given = {"kind": how.sampler, "steps": how.steps}
        given = {name: value for name, value in given.items() if value is not None}
        sampling = self.run.sampler.model_copy(update=given)
        plan(self.model.process, sampling)
        return sampling

    def _is_native(self, scale: float, pixels: Pixels, tile: int | None) -> bool:
        """Whether the network makes this size itself: one that takes LR pictures at their own size,
        and no tiles.
        """
        network = self.run.network
        whole = tile is None and _is_small(pixels)
        return network.cond_factor is None and whole and 1 <= scale <= network.largest_scale

    def _enlarge(self, pixels: Pixels, how: Options, sampling: Sampling, canvas: Canvas) -> None:
        """By the model's own scale, whole or in tiles, as large as memory allows."""
        scale, factor = self.run.scale, self.autoencoder.factor
        align = self.denoiser.network.multiple
        if self.denoiser.network.cond_factor is None:  # tiles begin on LR pixels too
            align = math.lcm(align, scale)
        source = Source(pixels, CONTEXT, factor * align // math.gcd(factor * align, scale))
        size = source.size[0] * scale, source.size[1] * scale
        inner = pixels.size[0] * scale, pixels.size[1] * scale
        frame = Frame(source, size, CONTEXT * scale, inner)
        small = how.tile is None and _is_small(pixels)
        tile = max(source.size) if small else (how.tile or _auto_tile(pixels)) + 2 * CONTEXT
        side, pad = tile * scale / factor, how.tile_pad * scale / factor
        plan_tiles = partial(Tiles.plan, size[0] // factor, size[1] // factor, side, pad, align)
        tiles = None if small and source.count <= how.batch_size else plan_tiles()
        while True:
            if tiles is None:
                make = partial(self._whole, frame, how, sampling)
            else:
                make = partial(self._in_tiles, source, tiles, how, sampling)
            try:
                return self._with_room(make, frame, how, canvas)
            except torch.OutOfMemoryError:
                tiles = self._smaller(tiles or plan_tiles())

    def _with_room(
        self, make: Callable[[], Made], frame: Frame, how: Options, canvas: Canvas
    ) -> None:
        """Makes and draws; where memory runs out, once more without recorded calls, if there are
        any.
        """
        try:
            return self._draw(make(), frame, how, canvas)
        except torch.OutOfMemoryError:
            call = self.denoiser.call
            if not (isinstance(call, GraphedCall) and call.drop()):
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

    def _whole(self, frame: Frame, how: Options, sampling: Sampling) -> Made:
        """In one piece, which stays on the device."""
        lr = on_device(frame.source.whole(frame.source.size), self.device)
        base = upsample(lr, frame.size)
        with self._autocast():
            inputs = self.denoiser.prepare(lr, self._encode(base))
            noise = seeded(how.seed, inputs.z_lr)
            z0 = sample(self.denoiser, inputs, sampling, noise, clip=self.autoencoder.bound)
        made = [self._decode(z0)]
        return lambda: iter(made)

    def _in_tiles(self, source: Source, tiles: Tiles, how: Options, sampling: Sampling) -> Made:
        """Band by band; on the device are tiles and, of each step, about a row of them."""
        network, process = self.denoiser.network, self.denoiser.process
        sampler = Sampler(process, self.denoiser.prediction, sampling, self.autoencoder.bound)
        made, factor = (self._encode, self._denoise, self._decode), self.autoencoder.factor
        calls = Calls(*made, factor, network.cond_factor, self.device)
        noise = partial(seeded, how.seed)
        return InTiles(calls, source, tiles, sampler, noise, how.batch_size).bands

    def _draw(self, made: Made, frame: Frame, how: Options, canvas: Canvas) -> None:
        """Colours, then the wanted size, strip by strip."""
        strips, height = frame.strips(canvas.size[0]), frame.inner[0]
        needs = [rows_needed(height, canvas.size[0], strip) for strip in strips]
        wants = [slice(max(0, r.start - REACH), min(height, r.stop + REACH)) for r in needs]
        fix = COLOR_FIXES[how.color_fix](lambda: frame.pairs(made(), frame.strips(height)))
        for strip, need, want, pair in zip(strips, needs, wants, frame.pairs(made(), wants)):
            sr = in_columns(fix, *pair)[..., need.start - want.start : need.stop - want.start, :]
            if not sr.isfinite().all():
                raise ImageError(
                    f"the model's result holds NaN or infinity in {self.dtype}; try dtype fp32."
                )
            sr = (sr.clamp(-1, 1) + 1) / 2
            canvas.write(strip, resized(sr, need.start, frame.inner, canvas.size, strip))

    def _encode(self, x: Tensor) -> Tensor:
        with self._autocast():
            return self.autoencoder.encode(on_device(x, self.device)).float()

    def _denoise(self, turn: Turn, z_t: Tensor, z_lr: Tensor, lr: Tensor) -> Tensor:
        """Of tiles; the step is embedded once for all of them."""
        z_t, z_lr, lr = (on_device(x, self.device) for x in (z_t, z_lr, lr))
        t = torch.full((1,), turn.t, device=self.device)
        with self._autocast():
            at = self.denoiser.numbers(t, z_t)
            emb = self.denoiser.embed(at).expand(len(z_t), -1)
            inputs = replace(self.denoiser.prepare(lr, z_lr), at=at, emb=emb)
            return self.denoiser(z_t, t, inputs).float()

    def _decode(self, z: Tensor) -> Tensor:
        with self._autocast():
            return self.autoencoder.decode(on_device(z, self.device)).float()

    def _autocast(self) -> torch.autocast:
        """Without its cache of weights: a weight is used once a call, and graphs must own theirs."""
        lower = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=lower, cache_enabled=False)


def _auto_tile(pixels: Pixels) -> int:
    return AUTO_TILE if pixels.size[0] * pixels.size[1] <= VERY_LARGE else SMALL_TILE


def _is_small(pixels: Pixels) -> bool:
    return pixels.size[0] * pixels.size[1] <= AUTO_TILE**2
