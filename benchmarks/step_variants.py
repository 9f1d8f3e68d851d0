"""The training steps that `train-step` sets beside each other: ours, and the official recipe in
three forms.

All have the same network, weights, batch and noise. Ours is the step of `training/train.py` in the
precision of the config, channels-last. Official is `official.py` on the network's plain layers,
contiguous: in fp32; under bf16 autocast; and that compiled by torch.compile. The diffusion step
itself: terms through the decoder, the same for all, are off; so are EMA and data. Encoding is in it
unless the config caches latents; then the batch brings them, as in training. The autoencoder has
random weights where those of the config are not at hand: its time does not depend on them.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ldm_dream.config.files import load_config
from ldm_dream.config.run import DiffusionRun
from ldm_dream.data.pairs import Batch
from ldm_dream.data.resize import size_of
from ldm_dream.errors import UserError
from ldm_dream.heap import keep_freed_memory
from ldm_dream.hub import HubError
from ldm_dream.model_folder import ModelError, load_autoencoder, resolve_autoencoder
from ldm_dream.networks import compile_blocks
from ldm_dream.networks.autoencoders import build_autoencoder
from ldm_dream.networks.base import Autoencoder
from ldm_dream.training.diffusion import DiffusionObjective
from ldm_dream.training.optimizer import make_optimizer
from ldm_dream.training.precision import precision_of

from .official import Drawn, official_loss, plain

OFFICIAL = ("official fp32", "official bf16", "official compiled")


class Variant(NamedTuple):
    """What a process needs to make its step."""

    recipe: str  # "ours" or one of OFFICIAL
    dream: bool
    config: str
    overrides: tuple[str, ...]
    device: str
    compile_ours: bool

    @property
    def name(self) -> str:
        return f"{self.recipe} {'DREAM' if self.dream else 'standard'}"


class Step(ABC):
    """One variant, ready to step. A subclass has its `layout`, `precision`, `optimizer` and `loss`;
    `compiled` says whether `compile` changes anything.
    """

    layout: torch.memory_format
    precision: str
    compiled: bool
    optimizer: torch.optim.Optimizer

    def __init__(self, variant: Variant):
        torch.manual_seed(0)
        self.variant, self.device = variant, torch.device(variant.device)
        self.run = run = load_run(variant)
        autoencoder = autoencoder_of(run).to(self.device).to(memory_format=self.layout)
        self.objective = DiffusionObjective(run, autoencoder)
        self.place = 0.5
        self.objective.process.draw = self.draw
        self.network = self.objective.model
        self.network.to(self.device).to(memory_format=self.layout).train()
        self.batch = self.make_batch()

    def make_batch(self) -> Batch:
        run = self.run
        hr = torch.rand(run.train.batch_size, 3, run.data.patch, run.data.patch) * 2 - 1
        lr = hr[..., :: run.scale, :: run.scale].contiguous()
        hr, lr = (x.to(self.device, memory_format=self.layout) for x in (hr, lr))
        batch = Batch(hr, lr)
        if not run.data.cache_latents:
            return batch
        z0, z_lr = self.objective.latents(batch)
        return Batch(batch.hr, batch.lr, z0=z0, z_lr=z_lr)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """In place of the process's random steps: the one at `self.place` in [0,1) of the process,
        for the whole batch.
        """
        index = int(self.place * self.objective.process.num_timesteps)
        return torch.full((count,), index, device=self.device)

    def __call__(self, place: float = 0.5) -> float:
        """-> seconds"""
        self.place = place
        start = time.perf_counter()
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def count_flop(self) -> int:
        """Of one step. Before `compile`: the counter does not see into compiled code."""
        with FlopCounterMode(display=False) as counter:
            self.loss().backward()
        self.optimizer.zero_grad(set_to_none=True)
        return counter.get_total_flops()

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    @abstractmethod
    def loss(self) -> Tensor: ...

    @abstractmethod
    def compile(self) -> None: ...


class OurStep(Step):
    layout = torch.channels_last

    def __init__(self, variant: Variant):
        super().__init__(variant)
        self.precision = precision_of(self.run.train.precision, self.device).name
        self.compiled = variant.compile_ours
        if self.device.type == "cpu":
            keep_freed_memory()
        self.optimizer = make_optimizer(self.run.train, list(self.network.parameters()))

    def loss(self) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(0)
        with self.autocast():
            return self.objective.parts[0].loss(self.batch, 0, generator)[0]

    def compile(self) -> None:
        compile_blocks(self.network)


class OfficialStep(Step):
    layout = torch.contiguous_format

    def __init__(self, variant: Variant):
        super().__init__(variant)
        if self.run.prediction != "eps":
            raise UserError(
                f"{variant.config}: the official recipe predicts eps, this config "
                f"{self.run.prediction}; leave it out: --ours-only."
            )
        self.precision = "fp32" if variant.recipe == "official fp32" else "bf16"
        self.compiled = variant.recipe == "official compiled"
        self.network = plain(self.network)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-5)
        self.call = self.forward

    def loss(self) -> Tensor:
        objective, process = self.objective, self.objective.process
        generator = torch.Generator(self.device).manual_seed(0)
        with self.autocast():
            z0, z_lr = objective.latents(self.batch)
        t = process.draw(len(z0), generator)
        eps = torch.randn(z0.shape, generator=generator, device=z0.device)
        cond = objective.denoiser.cond(self.batch.lr, z_lr)

        def denoise(z_t: Tensor) -> Tensor:
            with self.autocast():  # one for each pass, which both cast the weights
                return self.call(z_t, t, cond).float()

        p = self.run.loss.p if self.variant.dream else None
        return official_loss(denoise, self.network, process, Drawn(z0, z_lr, t, eps), p)

    def forward(self, z_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        network = self.network
        emb = network.embed(self.objective.process.model_t(t, network.sees_noise_level))
        return network(z_t, emb, *network.prepare(cond, size_of(z_t)))

    def compile(self) -> None:
        self.call = torch.compile(self.forward)


def make_step(variant: Variant) -> Step:
    return OurStep(variant) if variant.recipe == "ours" else OfficialStep(variant)


def load_run(variant: Variant) -> DiffusionRun:
    """The config with DREAM at full strength or off, and without terms through the decoder."""
    loss = [f"loss.strength={float(variant.dream)}", "loss.pixel=0"]
    loss += [f"loss.{name}=0" for name in ("lpips", "lpips_vgg", "lpips_shift", "adversarial")]
    run = load_config(variant.config, [*variant.overrides, *loss])
    if not isinstance(run, DiffusionRun):
        raise UserError(f"{variant.config}: train-step wants a config with task: diffusion.")
    return run


def autoencoder_of(run: DiffusionRun) -> Autoencoder:
    try:
        return load_autoencoder(resolve_autoencoder(run.autoencoder))
    except (ModelError, HubError):
        return build_autoencoder(run.autoencoder).requires_grad_(False).eval()
