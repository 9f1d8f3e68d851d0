"""Upscaler: a picture in, the same kind of picture out, larger.

    lr -> bicubic x scale -> encode -> z_lr;  cond from lr, z_lr -> sample z0 -> decode -> colour fix -> crop -> wanted size

The picture is mirrored up to whole attention windows first and cropped afterwards, so every size
works. Encoder, network and decoder run in overlapped tiles (`tiling.py`); z_t, noise and blends
span the whole picture. They live on the device while the picture is one tile and in main memory
otherwise, so accelerator memory depends on tile and batch size, not on the picture.

Symbols: f = autoencoder factor (HR pixels a latent pixel); scale = HR pixels an LR pixel.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm_dream.config.run import DiffusionRun
from ldm_dream.data.images import MAX_PIXELS, ImageError
from ldm_dream.data.resize import imresize_to, upsample
from ldm_dream.denoiser import build_cond
from ldm_dream.errors import UserError
from ldm_dream.hub import upload
from ldm_dream.model_folder import load_model
from ldm_dream.networks import compile_blocks
from ldm_dream.networks.idm import LRFeatures
from ldm_dream.process import Denoise, Process
from ldm_dream.sampler import sample, timesteps
from ldm_dream.upscaling.colors import COLOR_FIXES
from ldm_dream.upscaling.cuda_graphs import GraphedCall
from ldm_dream.upscaling.pictures import Picture, unpack
from ldm_dream.upscaling.tiling import Tiles, pad_to_multiple, shared_noise

log = logging.getLogger(__name__)

DEFAULT_MODEL = "dream-latent-x4-tiny"
# LR pixels: tile=None takes a picture of up to 256 x 256 pixels whole, a larger one in tiles of
# that side
AUTO_TILE = 256
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class UpscaleError(UserError, ValueError):
    """An option of the upscaler that is not possible; its text is complete for the user."""


@dataclass(frozen=True)
class _Sampling:
    kind: str
    steps: int | None
    seed: int
    batch_size: int


class Upscaler:
    """Callable on pictures. `Upscaler.from_pretrained("dream-latent-x4-tiny")(image, scale=4)`.

    run: the model's config. network: weights to sample with (EMA). process:
    `build_process(run.process)`. The modules are moved to `device` and left in eval mode. dtype
    other than fp32 = autocast.
    """

    def __init__(
        self,
        run: DiffusionRun,
        network: nn.Module,
        autoencoder: nn.Module,
        process: Process,
        device: str = "auto",
        dtype: str = "auto",
        compile: bool = False,
    ):
        self.run, self.process = run, process
        self.folder: Path | None = None
        self.device = _device(device)
        self.dtype = _dtype(dtype, self.device)
        self.network = network.eval().to(self.device, memory_format=torch.channels_last)
        self.autoencoder = autoencoder.eval().to(self.device, memory_format=torch.channels_last)
        self._call = self.network
        if compile:
            compile_blocks(self.network, dynamic=True)
            if self.device.type == "cuda":
                self._call = GraphedCall(self.network)

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
        model = load_model(name_or_dir)
        upscaler = cls(
            model.run, model.network, model.autoencoder, model.process, device, dtype, compile
        )
        upscaler.folder = model.folder
        return upscaler

    def push_to_hub(self, repo_id: str, private: bool = False) -> str:
        """Send the model folder this came from to owner/name of the Hugging Face hub; -> its
        address. Raises HubError, UpscaleError.
        """
        if self.folder is None:
            raise UpscaleError(
                "this upscaler was not loaded from a folder; save the model with model_folder.save_model first."
            )
        return upload(self.folder, repo_id, private)

    @torch.no_grad()
    def __call__(
        self,
        image: Picture,
        scale: float | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        seed: int = 0,
        tile: int | None = None,
        tile_pad: int = 16,
        batch_size: int = 1,
        color_fix: str = "wavelet",
    ) -> Picture:
        """A picture -> the same type and bit depth (see `pictures.unpack`), round(H * scale) x
        round(W * scale).

        scale: any number above 0; None = the model's own. The model enlarges by its own scale;
        another size is made from that by bicubic, so a scale above the model's adds no further
        detail. IDM enlarges by any scale from 1 to its `max_scale` itself, where the picture is
        taken whole. steps, sampler: None = the model's. seed: same seed, same picture, for every
        batch size up to float rounding. tile, tile_pad: LR pixels, rounded up to whole attention
        windows; tile=None is automatic. batch_size: tiles at a time. color_fix: none, wavelet,
        adain. Alpha is enlarged by bicubic. Raises UpscaleError or SamplerError for an option,
        ImageError for a picture that is not possible.
        """
        scale = self.run.scale if scale is None else scale
        self._check(scale, steps, seed, tile, tile_pad, batch_size, color_fix)
        rgb, alpha, pack = unpack(image)
        height, width = (max(1, round(side * scale)) for side in rgb.shape[-2:])
        largest = max(height * width, rgb.shape[-2] * rgb.shape[-1] * self.run.scale**2)
        if largest > MAX_PIXELS:
            raise ImageError(
                f"the result has {largest} pixels, more than the {MAX_PIXELS} allowed; cut it first."
            )
        default = self.run.sampler
        sampling = _Sampling(
            sampler or default.kind, default.steps if steps is None else steps, seed, batch_size
        )
        lr = rgb * 2 - 1
        if self._is_native(scale, lr, tile):
            sr, base = self._enlarge_at_once(lr, height, width, sampling)
        else:
            sr, base = self._enlarge(lr, tile, tile_pad, sampling)
        sr = COLOR_FIXES[color_fix](sr, base)
        if not sr.isfinite().all():
            raise ImageError(
                f"the model's result holds NaN or infinity in {self.dtype}; try dtype fp32."
            )
        sr = _resize((sr.clamp(-1, 1) + 1) / 2, height, width)
        return pack(sr, None if alpha is None else _resize(alpha, height, width))

    def _is_native(self, scale: float, lr: Tensor, tile: int | None) -> bool:
        """Whether the network makes this size itself: one that takes LR pictures at their own size,
        and no tiles.
        """
        whole = tile is None and lr.shape[-2] * lr.shape[-1] <= AUTO_TILE**2
        return (
            self.run.network.cond_factor is None
            and whole
            and 1 <= scale <= self.run.network.max_scale
        )

    def _enlarge_at_once(
        self, lr: Tensor, height: int, width: int, sampling: _Sampling
    ) -> tuple[Tensor, Tensor]:
        """LR [B, 3, H, W] in [-1, 1] -> result and bicubic base, [B, 3, height, width]."""
        base = upsample(lr, (height, width)).to(self.device)
        process = self.process
        with torch.no_grad(), self._autocast():
            cond = self.network.prepare(self._on_device(lr), (height, width))

        def denoise(z_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            step = process.model_t(t, self.network.sees_noise_level)[:1]
            return self._predict(process.model_input(z_t, t), step, cond)

        return self._sample(denoise, base, cond, sampling), base

    def _enlarge(
        self, lr: Tensor, tile: int | None, tile_pad: int, sampling: _Sampling
    ) -> tuple[Tensor, Tensor]:
        """LR [B, 3, H, W] in [-1, 1] -> result and bicubic base, [B, 3, H * scale, W * scale]. No
        memory: halves the tile.
        """
        scale, factor = self.run.scale, self.autoencoder.factor
        align = self.network.multiple
        if self.run.network.cond_factor is None:  # tiles begin on LR pixels too
            align = math.lcm(align, scale)
        padded = pad_to_multiple(lr, factor * align // math.gcd(factor * align, scale))
        if tile is None:
            tile = (
                max(padded.shape[-2:]) if lr.shape[-2] * lr.shape[-1] <= AUTO_TILE**2 else AUTO_TILE
            )
        height, width = (side * scale // factor for side in padded.shape[-2:])
        tiles = Tiles.plan(height, width, tile * scale / factor, tile_pad * scale / factor, align)
        while True:
            try:
                sr, base = self._diffuse(padded, tiles, sampling)
                return tuple(
                    x[..., : lr.shape[-2] * scale, : lr.shape[-1] * scale] for x in (sr, base)
                )
            except torch.OutOfMemoryError:
                smaller = tiles.halved()
            if smaller is None:
                raise UpscaleError(
                    f"{self.device} has too little memory for the smallest tiles; lower batch_size or use the CPU."
                )
            log.warning(
                "out of memory on %s: tiles of %d latent pixels become tiles of %d.",
                self.device,
                tiles.size,
                smaller.size,
            )
            tiles = smaller

    def _diffuse(self, lr: Tensor, tiles: Tiles, sampling: _Sampling) -> tuple[Tensor, Tensor]:
        run, process, batch_size = self.run, self.process, sampling.batch_size
        lr = lr.to(self.device if tiles.is_whole else "cpu")
        base = upsample(lr, tuple(side * run.scale for side in lr.shape[-2:]))
        z_lr = tiles.map(self._encode, base, batch_size=batch_size)
        cond = build_cond(run, lr, z_lr)

        def denoise(z_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            z_in = process.model_input(z_t, t)
            step = process.model_t(t, self.network.sees_noise_level)[:1]  # one for all pictures
            return tiles.map(
                lambda z, c: self._predict(z, step, self._on_device(c)),
                z_in,
                cond,
                batch_size=batch_size,
            )

        return tiles.map(
            self._decode, self._sample(denoise, z_lr, cond, sampling), batch_size=batch_size
        ), base

    def _sample(self, denoise: Denoise, z_lr: Tensor, cond: Tensor, sampling: _Sampling) -> Tensor:
        return sample(
            denoise,
            self.process,
            z_lr,
            cond,
            prediction=self.run.prediction,
            kind=sampling.kind,
            steps=sampling.steps,
            eta=self.run.sampler.eta,
            clip=self.autoencoder.bound,
            noise=shared_noise(sampling.seed, z_lr),
        )

    def _encode(self, x: Tensor) -> Tensor:
        with self._autocast():
            return self.autoencoder.encode(self._on_device(x)).float()

    def _decode(self, z: Tensor) -> Tensor:
        with self._autocast():
            return self.autoencoder.decode(self._on_device(z)).float()

    def _predict(self, z: Tensor, step: Tensor, cond: Tensor | LRFeatures) -> Tensor:
        with self._autocast():
            return self._call(self._on_device(z), step.to(self.device).expand(len(z)), cond).float()

    def _on_device(self, x: Tensor) -> Tensor:
        return x.to(self.device, memory_format=torch.channels_last)

    def _autocast(self) -> torch.autocast:
        lower = self.dtype != torch.float32
        return torch.autocast(
            self.device.type, self.dtype, enabled=lower, cache_enabled=False
        )  # a weight is used once a call

    def _check(self, scale, steps, seed, tile, tile_pad, batch_size, color_fix) -> None:
        if not (isinstance(scale, (int, float)) and math.isfinite(scale) and scale > 0):
            raise UpscaleError(
                f"scale={scale} is not possible; give a number above 0, for example {self.run.scale}."
            )
        timesteps(self.process, steps)  # raises before the work begins
        if seed < 0:
            raise UpscaleError(f"seed={seed} is not possible; give a whole number from 0.")
        for name, value, least in (
            ("tile", tile, 1),
            ("tile_pad", tile_pad, 0),
            ("batch_size", batch_size, 1),
        ):
            if value is not None and value < least:
                raise UpscaleError(
                    f"{name}={value} is not possible; give a whole number from {least}."
                )
        if color_fix not in COLOR_FIXES:
            raise UpscaleError(
                f"color_fix={color_fix!r} is unknown; use one of {', '.join(COLOR_FIXES)}."
            )


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
        return (
            torch.float32
            if device.type == "cpu"
            else torch.bfloat16
            if torch.cuda.is_bf16_supported()
            else torch.float16
        )
    if name not in DTYPES:
        raise UpscaleError(f"dtype={name!r} is unknown; use auto, {', '.join(DTYPES)}.")
    return DTYPES[name]
