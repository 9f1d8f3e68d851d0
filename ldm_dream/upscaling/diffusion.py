"""The diffusion models of this project as an engine of the upscaler.

    lr -> bicubic x scale -> encode -> z_lr;  inputs from lr, z_lr -> sample z0 -> decode

Symbols: f = autoencoder factor (HR pixels a latent pixel); scale = HR pixels an LR pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_dream.config.process import Sampling
from ldm_dream.denoiser import Denoiser
from ldm_dream.model_folder import LoadedModel
from ldm_dream.networks import compile_blocks
from ldm_dream.sampler import Sampler, Turn, plan, sample_steps, seeded
from ldm_dream.upscaling.cuda_graphs import GraphedCall
from ldm_dream.upscaling.devices import placed
from ldm_dream.upscaling.engine import Engine, Made, Options, on_device
from ldm_dream.upscaling.in_tiles import Calls, InTiles
from ldm_dream.upscaling.pictures import Frame, Source
from ldm_dream.upscaling.tiling import Tiles
from ldm_dream.upscaling.watch import QUICK, Watch


class Diffusion(Engine):
    """model: its modules are moved to `device` and left in eval mode, or copied there for a dtype
    other than fp32, which means autocast. compile: torch.compile, on CUDA with CUDA graphs.
    """

    color_fix = "wavelet"
    sees_enlarged = True
    context = 4  # with it, the border of a flat picture is as its middle

    def __init__(
        self, model: LoadedModel, device: torch.device, dtype: torch.dtype, compile: bool = False
    ):
        super().__init__(model.run.scale, device, dtype)
        self.run = model.run
        network = placed(model.network, device, dtype)
        self.autoencoder = placed(model.autoencoder, device, dtype)
        self.factor = self.autoencoder.factor
        call: Callable[..., Tensor] = network
        if compile:
            compile_blocks(network, dynamic=True)
            if device.type == "cuda":
                call = GraphedCall(network)
        self.denoiser = Denoiser(
            network, model.process, self.run.condition, self.run.prediction, call
        )
        # tiles begin on LR pixels too where the network sees these as they are
        takes_lr = network.cond_factor is None
        least = self.scale if takes_lr else 1
        self.align = math.lcm(network.align, least)
        # graphs are recorded for a few sizes only
        recorded = isinstance(call, GraphedCall)
        self.multiple = self.align if recorded else math.lcm(network.multiple, least)
        self.stoppable = not compile

    def makes(self, scale: float, asked: bool) -> bool:
        network = self.run.network
        if network.cond_factor is None:
            return 1 <= scale <= network.largest_scale
        # it meets no scale: it sees the enlarged LR picture alone, at the size of the result
        sees_only_that = self.run.autoencoder.kind == "pixel" and "lr" not in self.run.condition
        return asked and scale >= 1 and sees_only_that

    def settled(self, how: Options) -> Options:
        sampling = self._sampling(how)
        steps = len(plan(self.denoiser.process, sampling))
        how = replace(how, steps=steps, sampler=sampling.kind, seed=how.seed or 0)
        return super().settled(how)

    def calls(self, how: Options) -> int:
        """Raises SamplerError for a sampler or steps that are not possible."""
        return len(plan(self.denoiser.process, self._sampling(how))) + 2

    def whole(self, frame: Frame, how: Options, watch: Watch) -> Made:
        lr = on_device(frame.source.whole(frame.source.size), self.device)
        with self._autocast():
            inputs = self.denoiser.prepare(lr, watch.counts(self._encode)(frame.enlarged))
            noise = seeded(how.seed or 0, inputs.z_lr)
            bound = self.autoencoder.bound
            for step in sample_steps(self.denoiser, inputs, self._sampling(how), noise, bound):
                watch.add(len(lr), partial(self._seen, step.z0_hat))
        made = [watch.counts(self._decode)(step.z_t)]
        return lambda: iter(made)

    def in_tiles(self, source: Source, tiles: Tiles, how: Options, watch: Watch) -> Made:
        network, process = self.denoiser.network, self.denoiser.process
        sampler = Sampler(
            process, self.denoiser.prediction, self._sampling(how), self.autoencoder.bound
        )
        encode, denoise = watch.counts(self._encode), watch.counts(self._denoise)
        decode, condition = watch.counts(self._decode), network.cond_factor
        calls = Calls(encode, denoise, decode, self.factor, condition, self.device)
        noise = partial(seeded, how.seed or 0)
        return InTiles(calls, source, tiles, sampler, noise, how.batch_size).bands

    def give_memory_back(self) -> bool:
        call = self.denoiser.call
        return isinstance(call, GraphedCall) and call.drop()

    def _sampling(self, how: Options) -> Sampling:
        """The model's, with what was asked for; another kind begins with its own defaults."""
        own = self.run.sampler
        if how.sampler not in (None, own.kind):
            shared = own.model_dump(include={"steps", "eta", "variance"})
            own = Sampling(**shared).model_copy(update={"kind": how.sampler})
        return own if how.steps is None else own.model_copy(update={"steps": how.steps})

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

    def _seen(self, z0: Tensor) -> Tensor:
        """About what the first latent shows, smaller: quickly made."""
        step = -(-max(z0.shape[-2:]) * self.factor // QUICK)
        return self._decode(F.avg_pool2d(z0[:1], step, ceil_mode=True))

    def _decode(self, z: Tensor) -> Tensor:
        with self._autocast():
            return self.autoencoder.decode(on_device(z, self.device)).float()
