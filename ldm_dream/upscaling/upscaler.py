"""Upscaler: a picture in, the same kind of picture out, larger.

    lr -> bicubic x scale -> encode -> z_lr;  inputs from lr, z_lr -> sample z0 -> decode
       -> colour fix -> crop -> wanted size

The picture is mirrored up to whole attention windows first and cropped afterwards, so every size
works. Encoder, network and decoder run in overlapped tiles (`tiling.py`); z_t, noise and blends
span the whole picture. They live on the device while the picture is one tile and in main memory
otherwise, so accelerator memory depends on tile and batch size, not on the picture.

Symbols: f = autoencoder factor (HR pixels a latent pixel); scale = HR pixels an LR pixel.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_dream.config.model import Sampling
from ldm_dream.data.images import MAX_PIXELS, ImageError
from ldm_dream.data.resize import imresize_to, size_of, upsample
from ldm_dream.denoiser import Denoiser, Inputs
from ldm_dream.errors import UserError
from ldm_dream.hub import upload
from ldm_dream.model_folder import LoadedModel, load_model
from ldm_dream.networks import compile_blocks
from ldm_dream.sampler import plan, sample, seeded
from ldm_dream.upscaling.cuda_graphs import GraphedCall
from ldm_dream.upscaling.pictures import COLOR_FIXES, Picture, unpack
from ldm_dream.upscaling.tiling import Tiles

log = logging.getLogger(__name__)

DEFAULT_MODEL = "dream-latent-x4-tiny"
# LR pixels: tile=None takes a picture of up to 256 x 256 pixels whole, a larger one in tiles of
# that side
AUTO_TILE = 256
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class UpscaleError(UserError, ValueError):
    """An option of the upscaler that is not possible; its text is complete for the user."""


@dataclass(frozen=True)
class Options:
    """How one picture is upscaled. Raises UpscaleError.

    steps, sampler: None = the model's. seed: same seed, same picture, for every batch size up to
    float rounding. tile, tile_pad: LR pixels, rounded up to whole attention windows; tile=None is
    automatic. batch_size: tiles at a time. color_fix: none, wavelet, adain.
    """

    steps: int | None = None
    sampler: str | None = None
    seed: int = 0
    tile: int | None = None
    tile_pad: int = 16
    batch_size: int = 1
    color_fix: str = "wavelet"

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("tile", 1), ("tile_pad", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UpscaleError(
                    f"{name}={value} is not possible; give a whole number from {least}."
                )
        if self.color_fix not in COLOR_FIXES:
            raise UpscaleError(
                f"color_fix={self.color_fix!r} is unknown; use one of {', '.join(COLOR_FIXES)}."
            )


class TiledDenoiser(Denoiser):
    """A denoiser whose network calls run in tiles on `device`; z_t and the condition span the whole
    picture and stay where they are.
    """

    def __init__(self, whole: Denoiser, tiles: Tiles, batch_size: int, device: torch.device):
        super().__init__(
            whole.network, whole.process, whole.condition, whole.prediction, whole.call
        )
        self.tiles, self.batch_size, self.device = tiles, batch_size, device

    def prepare(self, lr: Tensor, z_lr: Tensor) -> Inputs:
        """Its one feature is the condition as it is; `network.prepare` follows tile by tile."""
        return Inputs(z_lr, (self.cond(lr, z_lr),))

    def __call__(self, z_t: Tensor, t: Tensor, inputs: Inputs) -> Tensor:
        emb = self.embed(t[:1].to(self.device))  # one step for all tiles

        def call(z: Tensor, cond: Tensor) -> Tensor:
            z, cond = on_device(z, self.device), on_device(cond, self.device)
            features = self.network.prepare(cond, size_of(z))
            return self.call(z, emb.expand(len(z), -1), *features).float()

        z_in = self.process.model_input(z_t, t)
        return self.tiles.map(call, z_in, *inputs.features, batch_size=self.batch_size)


class Upscaler:
    """Callable on pictures. `Upscaler.from_pretrained("dream-latent-x4-tiny")(image, scale=4)`.

    model: its modules are moved to `device` and left in eval mode. dtype other than fp32 =
    autocast.
    """

    def __init__(
        self, model: LoadedModel, device: str = "auto", dtype: str = "auto", compile: bool = False
    ):
        self.model, self.run = model, model.run
        self.device = _device(device)
        self.dtype = _dtype(dtype, self.device)
        network, self.autoencoder = model.network.eval(), model.autoencoder.eval()
        for module in (network, self.autoencoder):
            module.to(self.device).to(memory_format=torch.channels_last)
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
        rgb, alpha, pack = unpack(image)
        height, width = (max(1, round(side * scale)) for side in rgb.shape[-2:])
        largest = max(height * width, rgb.shape[-2] * rgb.shape[-1] * self.run.scale**2)
        if largest > MAX_PIXELS:
            raise ImageError(
                f"the result has {largest} pixels, more than the {MAX_PIXELS} allowed; "
                "cut it first."
            )
        lr = rgb * 2 - 1
        made = None
        if self._is_native(scale, lr, how.tile):
            try:
                made = self._whole(lr, (height, width), how, sampling)
            except torch.OutOfMemoryError:
                log.warning("out of memory on %s: enlarged in tiles instead.", self.device)
        sr, base = made or self._enlarge(lr, how, sampling)
        sr = COLOR_FIXES[how.color_fix](sr, base)
        if not sr.isfinite().all():
            raise ImageError(
                f"the model's result holds NaN or infinity in {self.dtype}; try dtype fp32."
            )
        sr = _resize((sr.clamp(-1, 1) + 1) / 2, height, width)
        return pack(sr, None if alpha is None else _resize(alpha, height, width))

    def _sampling(self, how: Options) -> Sampling:
        """The model's, with what was asked for. Raises SamplerError before the work begins."""
        given = {"kind": how.sampler, "steps": how.steps}
        given = {name: value for name, value in given.items() if value is not None}
        sampling = self.run.sampler.model_copy(update=given)
        plan(self.model.process, sampling)
        return sampling

    def _is_native(self, scale: float, lr: Tensor, tile: int | None) -> bool:
        """Whether the network makes this size itself: one that takes LR pictures at their own size,
        and no tiles.
        """
        network = self.run.network
        whole = tile is None and lr.shape[-2] * lr.shape[-1] <= AUTO_TILE**2
        return network.cond_factor is None and whole and 1 <= scale <= network.largest_scale

    def _enlarge(self, lr: Tensor, how: Options, sampling: Sampling) -> tuple[Tensor, Tensor]:
        """LR [B, 3, H, W] in [-1, 1] -> result and bicubic base, [B, 3, H * scale, W * scale]."""
        scale, factor = self.run.scale, self.autoencoder.factor
        align = self.denoiser.network.multiple
        if self.denoiser.network.cond_factor is None:  # tiles begin on LR pixels too
            align = math.lcm(align, scale)
        padded = mirrored(lr, factor * align // math.gcd(factor * align, scale))
        size = padded.shape[-2] * scale, padded.shape[-1] * scale
        small = lr.shape[-2] * lr.shape[-1] <= AUTO_TILE**2
        tile = how.tile or (max(padded.shape[-2:]) if small else AUTO_TILE)
        side, pad = tile * scale / factor, how.tile_pad * scale / factor
        plan_tiles = partial(Tiles.plan, size[0] // factor, size[1] // factor, side, pad, align)
        whole = how.tile is None and small and len(lr) <= how.batch_size
        tiles = None if whole else plan_tiles()
        while True:
            try:
                if tiles is None:
                    made = self._whole(padded, size, how, sampling)
                else:
                    made = self._in_tiles(padded, tiles, how, sampling)
                break
            except torch.OutOfMemoryError:
                tiles = tiles or plan_tiles()
                smaller = tiles.halved()
            if smaller is None:
                raise UpscaleError(
                    f"{self.device} has too little memory for the smallest tiles; "
                    "lower batch_size or use the CPU."
                )
            log.warning(
                "out of memory on %s: tiles of %d latent pixels become tiles of %d.",
                self.device, tiles.size, smaller.size,
            )  # fmt: skip
            tiles = smaller
        sr, base = (x[..., : lr.shape[-2] * scale, : lr.shape[-1] * scale] for x in made)
        return sr, base

    def _whole(
        self, lr: Tensor, size: tuple[int, int], how: Options, sampling: Sampling
    ) -> tuple[Tensor, Tensor]:
        """LR [B, 3, H, W] in [-1, 1] -> result and bicubic base, [B, 3, *size]."""
        lr = on_device(lr, self.device)
        base = upsample(lr, size)
        with self._autocast():
            inputs = self.denoiser.prepare(lr, self._encode(base))
            return self._decode(self._sample(self.denoiser, inputs, how, sampling)), base

    def _in_tiles(
        self, lr: Tensor, tiles: Tiles, how: Options, sampling: Sampling
    ) -> tuple[Tensor, Tensor]:
        """As `_whole`, for LR on the grid of `tiles`."""
        lr = lr.to(self.device if tiles.is_whole else "cpu")
        base = upsample(lr, (lr.shape[-2] * self.run.scale, lr.shape[-1] * self.run.scale))
        denoiser = TiledDenoiser(self.denoiser, tiles, how.batch_size, self.device)
        with self._autocast():
            z_lr = tiles.map(self._encode, base, batch_size=how.batch_size)
            z0 = self._sample(denoiser, denoiser.prepare(lr, z_lr), how, sampling)
            return tiles.map(self._decode, z0, batch_size=how.batch_size), base

    def _sample(
        self, denoiser: Denoiser, inputs: Inputs, how: Options, sampling: Sampling
    ) -> Tensor:
        noise = seeded(how.seed, inputs.z_lr)
        return sample(denoiser, inputs, sampling, noise, clip=self.autoencoder.bound)

    def _encode(self, x: Tensor) -> Tensor:
        return self.autoencoder.encode(on_device(x, self.device)).float()

    def _decode(self, z: Tensor) -> Tensor:
        return self.autoencoder.decode(on_device(z, self.device)).float()

    def _autocast(self) -> torch.autocast:
        """Without its cache of weights: a weight is used once a call, and graphs must own theirs."""
        lower = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=lower, cache_enabled=False)


def on_device(x: Tensor, device: torch.device) -> Tensor:
    return x.to(device, memory_format=torch.channels_last)


def mirrored(x: Tensor, multiple: int) -> Tensor:
    """[..., H, W] -> both sides up to the next multiple, mirrored at the bottom and right border;
    works from 1x1 on.
    """
    for axis in (-2, -1):
        length = x.shape[axis]
        index = torch.arange(-(-length // multiple) * multiple, device=x.device) % (2 * length)
        x = x.index_select(axis, torch.minimum(index, 2 * length - 1 - index))
    return x


def _resize(x: Tensor, height: int, width: int) -> Tensor:
    return x if x.shape[-2:] == (height, width) else imresize_to(x, height, width).clamp(0, 1)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise UpscaleError(f"device={name!r} is unknown; use auto, cpu, cuda or cuda:N.")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UpscaleError(
            f"device={name!r} is not there ({torch.cuda.device_count()} CUDA devices are); use auto or cpu."
        )
    return torch.device(name)


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere and later
        return torch.bfloat16 if has_bf16 else torch.float16
    if name not in DTYPES:
        raise UpscaleError(f"dtype={name!r} is unknown; use auto, {', '.join(DTYPES)}.")
    return DTYPES[name]
