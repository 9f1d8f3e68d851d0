"""What a run minimises. `train.py` knows only this contract, so one loop trains diffusion models
and autoencoders.

An objective has `model` (averaged by EMA and released), `trained` (all that a checkpoint must
hold), `parts` (one optimizer each, in the order in which they are stepped), `share_gradients`
(called once, before the first step) and `evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_dream.config.run import DiffusionRun
from ldm_dream.data.pairs import Batch
from ldm_dream.data.resize import upsample
from ldm_dream.denoiser import build_cond
from ldm_dream.errors import UserError
from ldm_dream.loss import diffusion_loss
from ldm_dream.networks import build_network
from ldm_dream.networks.idm import LRFeatures
from ldm_dream.process import build_process
from ldm_dream.sampler import sample
from ldm_dream.training import distributed


@dataclass(frozen=True)
class Part:
    """Parameters stepped together. `loss(batch, step, generator)` -> scalar to differentiate, and
    tensors to log.
    """

    name: str
    parameters: list[nn.Parameter]
    loss: Callable[[Batch, int, torch.Generator], tuple[Tensor, dict[str, Tensor]]]
    start: int = 0  # first step at which it is stepped


@dataclass(frozen=True)
class Shared:
    """What both passes of DREAM tell the network alike, made once. `[samples]`: of these samples."""

    cond: Tensor | LRFeatures
    embeddings: list[Tensor]  # of t

    def __getitem__(self, samples: Tensor) -> Shared:
        return Shared(self.cond[samples], [embedding[samples] for embedding in self.embeddings])

    def detach(self) -> Shared:
        """For a pass without gradient: torch's FlopCounterMode breaks on parts taken there of what
        has one.
        """
        return Shared(self.cond, [embedding.detach() for embedding in self.embeddings])


class DiffusionObjective:
    """DREAM (or plain) diffusion loss in the autoencoder's latent space, and the perceptual terms
    through its decoder.
    """

    def __init__(self, run: DiffusionRun, autoencoder: nn.Module, lpips: nn.Module | None):
        if run.loss.lpips and lpips is None:
            raise UserError(
                "loss.lpips is set but lpips_weights is not: name a file with AlexNet and LPIPS weights."
            )
        self.run, self.autoencoder, self.lpips = run, autoencoder, lpips
        self.process = build_process(run.process)
        self.trained = self.model = self.network = build_network(run.network)
        if hasattr(self.model, "reset_parameters"):
            self.model.reset_parameters()
        self.parts = [Part("network", list(self.model.parameters()), self.loss)]

    def share_gradients(self) -> None:
        self.network = distributed.share_gradients(self.model)

    def told(self, t: Tensor) -> Tensor:
        return self.process.model_t(t, self.model.sees_noise_level)

    def denoise(self, z_t: Tensor, t: Tensor, cond: Tensor | Shared) -> Tensor:
        told, cond = (
            (cond.embeddings, cond.cond) if isinstance(cond, Shared) else (self.told(t), cond)
        )
        return self.network(self.process.model_input(z_t, t), told, cond)

    def estimator(self, z_t: Tensor, t: Tensor, cond: Shared) -> Tensor:
        """`denoise` for DREAM's extra pass. On a CPU never compiled: that makes inference no
        faster, only its start slower.
        """
        device = z_t.device.type
        same = torch.is_autocast_enabled(
            device
        )  # then one cast of the weights serves both passes, else they are freed at once
        lower = same or self.run.loss.estimate_precision == "bf16"
        eager = torch.compiler.set_stance("force_eager") if device == "cpu" else nullcontext()
        with torch.autocast(device, torch.bfloat16, enabled=lower, cache_enabled=same), eager:
            return self.denoise(z_t, t, cond.detach())

    @torch.no_grad()
    def latents(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(z0, z_lr): cached ones if the batch brings them."""
        if batch.z0 is not None:
            return batch.z0, batch.z_lr
        both = self.autoencoder.encode(
            torch.cat([batch.hr, upsample(batch.lr, batch.hr.shape[-2:])])
        )
        return both.float().chunk(2)

    def loss(
        self, batch: Batch, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        run, cfg = self.run, self.run.loss
        z0, z_lr = self.latents(batch)
        t = self.process.draw(len(z0), generator)
        eps = torch.randn(z0.shape, generator=generator, device=z0.device)
        cond = build_cond(run, batch.lr, z_lr)
        if hasattr(self.model, "prepare"):
            cond = self.model.prepare(cond, z0.shape[-2:])
        shared = Shared(cond, self.model.embed(self.told(t)))
        result = diffusion_loss(
            self.denoise, self.process, z0, z_lr, shared, t, eps,
            prediction=run.prediction, kind=cfg.kind, strength=cfg.strength, p=cfg.p, network=self.model,
            estimator=self.estimator, fraction=cfg.fraction, min_lam=cfg.min_lam,
        )  # fmt: skip
        total = result.loss.mean()
        logged = {"diffusion": total.detach()}
        if cfg.pixel or cfg.lpips:
            hr = batch.hr[: cfg.decode_samples]
            decoded = self.autoencoder.decode(result.z0_hat[: cfg.decode_samples])
            if cfg.pixel:
                logged["pixel"] = F.l1_loss(decoded.float(), hr)
                total = total + cfg.pixel * logged["pixel"]
            if cfg.lpips:
                logged["lpips"] = self.lpips(decoded, hr).mean()
                total = total + cfg.lpips * logged["lpips"]
        return total, logged

    def evaluate(self, hr: Tensor, lr: Tensor, generator: torch.Generator) -> Tensor:
        """SR picture [1,3,H,W] of one validation pair with the config's sampler."""
        run = self.run
        z_lr = self.autoencoder.encode(upsample(lr, hr.shape[-2:])).float()
        z0 = sample(
            self.denoise, self.process, z_lr, build_cond(run, lr, z_lr), prediction=run.prediction, kind=run.sampler.kind,
            steps=run.sampler.steps, eta=run.sampler.eta, generator=generator, clip=self.autoencoder.bound,
        )  # fmt: skip
        return self.autoencoder.decode(z0)
