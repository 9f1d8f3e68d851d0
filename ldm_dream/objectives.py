"""What a run minimises. `train.py` knows only this contract, so one loop trains diffusion models and autoencoders.

An objective has `model` (averaged by EMA and released), `trained` (all that a checkpoint must hold), `parts` (one optimizer
each, in the order in which they are stepped), `share_gradients` (called once, before the first step) and `evaluate`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import ranks
from .autoencoder import VQGAN
from .condition import build_cond, upsample
from .config import AutoencoderRun, DiffusionRun
from .config_models import VQGANConfig
from .data.pairs import Batch
from .errors import UserError
from .loss import diffusion_loss
from .networks import build_network
from .networks.idm import LRFeatures
from .process import build_process
from .sampler import sample


@dataclass(frozen=True)
class Part:
    """Parameters stepped together. `loss(batch, step, generator)` -> scalar to differentiate, and tensors to log."""

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
        """For a pass without gradient: torch's FlopCounterMode breaks on parts taken there of what has one."""
        return Shared(self.cond, [embedding.detach() for embedding in self.embeddings])


class DiffusionObjective:
    """DREAM (or plain) diffusion loss in the autoencoder's latent space, and the perceptual terms through its decoder."""

    def __init__(self, run: DiffusionRun, autoencoder: nn.Module, lpips: nn.Module | None):
        if run.loss.lpips and lpips is None:
            raise UserError("loss.lpips is set but lpips_weights is not: name a file with AlexNet and LPIPS weights.")
        self.run, self.autoencoder, self.lpips = run, autoencoder, lpips
        self.process = build_process(run.process)
        self.trained = self.model = self.network = build_network(run.network)
        if hasattr(self.model, "reset_parameters"):
            self.model.reset_parameters()
        self.parts = [Part("network", list(self.model.parameters()), self.loss)]

    def share_gradients(self) -> None:
        self.network = ranks.share_gradients(self.model)

    def told(self, t: Tensor) -> Tensor:
        return self.process.model_t(t, self.model.sees_noise_level)

    def denoise(self, z_t: Tensor, t: Tensor, cond: Tensor | Shared) -> Tensor:
        told, cond = (cond.embeddings, cond.cond) if isinstance(cond, Shared) else (self.told(t), cond)
        return self.network(self.process.model_input(z_t, t), told, cond)

    def estimator(self, z_t: Tensor, t: Tensor, cond: Shared) -> Tensor:
        """`denoise` for DREAM's extra pass. On a CPU never compiled: that makes inference no faster, only its start slower."""
        device = z_t.device.type
        same = torch.is_autocast_enabled(device)  # then one cast of the weights serves both passes, else they are freed at once
        lower = same or self.run.loss.estimate_precision == "bf16"
        eager = torch.compiler.set_stance("force_eager") if device == "cpu" else nullcontext()
        with torch.autocast(device, torch.bfloat16, enabled=lower, cache_enabled=same), eager:
            return self.denoise(z_t, t, cond.detach())

    @torch.no_grad()
    def latents(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(z0, z_lr): cached ones if the batch brings them."""
        if batch.z0 is not None:
            return batch.z0, batch.z_lr
        both = self.autoencoder.encode(torch.cat([batch.hr, upsample(batch.lr, batch.hr.shape[-2:])]))
        return both.float().chunk(2)

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
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


class AutoencoderObjective:
    """VQGAN (arXiv 2012.09841, Sec. 3.1): L1 + LPIPS + codebook, and a hinge PatchGAN weighted by the ratio of gradient norms."""

    def __init__(self, run: AutoencoderRun, lpips: nn.Module | None):
        cfg = run.loss
        if cfg.lpips and lpips is None:
            raise UserError("loss.lpips is set but lpips_weights is not: name a file with AlexNet and LPIPS weights.")
        if not isinstance(run.autoencoder, VQGANConfig):
            raise UserError(f"autoencoder.kind={run.autoencoder.kind} cannot be trained, only imported; train a vqgan.")
        self.run, self.lpips = run, lpips
        self.model = VQGAN(run.autoencoder)
        self.discriminator = _patch_discriminator() if cfg.adversarial else None
        self.trained = nn.ModuleDict({"model": self.model, "usage": CodeUsage(run.autoencoder.n_embed)})
        self.trained["usage"].initialised.fill_(run.train.init_from is not None)  # a codebook that was trained is kept
        self.parts = [Part("autoencoder", list(self.model.parameters()), self.loss)]
        if self.discriminator is not None:
            self.trained["discriminator"] = self.discriminator
            parameters = list(self.discriminator.parameters())
            self.parts.append(Part("discriminator", parameters, self.discriminator_loss, cfg.adversarial_start))
        self.network, self.critic = self.model, self.discriminator  # as called in training: see share_gradients
        self._made: deque[tuple[Tensor, Tensor]] = deque()  # (real, fake) of this step, for the discriminator's part

    def share_gradients(self) -> None:
        self.network = ranks.share_gradients(self.model, some_unused=True)  # the codebook, before it begins
        if self.discriminator is not None:
            self.critic = ranks.share_gradients(self.discriminator)

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        cfg, x = self.run.loss, batch.hr
        usage: CodeUsage = self.trained["usage"]
        quantizes = step >= cfg.codebook_start
        if quantizes:
            usage.start(self.model, x, generator)
        fake, quantized = self.network(x, quantizes)
        logged = {"l1": F.l1_loss(fake.float(), x)}
        reconstruction = cfg.l1 * logged["l1"]
        if cfg.lpips:
            logged["lpips"] = self.lpips(fake, x).mean()
            reconstruction = reconstruction + cfg.lpips * logged["lpips"]
        total = reconstruction
        if quantized is not None:
            total = total + cfg.codebook * quantized.codebook_loss + cfg.commitment * quantized.commitment_loss
            logged["quantization"] = quantized.commitment_loss
            logged["codes_used"], logged["codes_revived"] = usage.update(self.model, quantized, x, cfg.revive_after, generator)
        if self.discriminator is not None and step >= cfg.adversarial_start:
            adversarial = -self.discriminator.requires_grad_(False)(fake).float().mean()
            total = total + cfg.adversarial * self._adaptive_weight(reconstruction, adversarial) * adversarial
            logged["adversarial"] = adversarial
            self._made.append((x, fake.detach()))
        return total, logged

    def discriminator_loss(self, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Hinge loss on the reconstruction that the autoencoder's part has just made of this batch."""
        real, fake = self._made.popleft()
        self.discriminator.requires_grad_(True)
        on_real, on_fake = self.critic(real).float(), self.critic(fake).float()
        hinge = 0.5 * (F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean())
        return hinge, {"hinge": hinge.detach()}

    def _adaptive_weight(self, reconstruction: Tensor, adversarial: Tensor) -> Tensor:
        """|d reconstruction / d w| / |d adversarial / d w| at the decoder's last layer (Eq. 7)."""
        last = self.model.decoder.conv_out.weight
        wanted = torch.autograd.grad(reconstruction, last, retain_graph=True)[0].norm()
        given = torch.autograd.grad(adversarial, last, retain_graph=True)[0].norm()
        return (wanted / (given + 1e-4)).clamp(0, 1e4).detach()

    def evaluate(self, hr: Tensor, lr: Tensor, generator: torch.Generator) -> Tensor:
        return self.model(hr, bool(self.trained["usage"].initialised))[0]


class CodeUsage(nn.Module):
    """Counts the steps for which each code was not chosen, and moves dead codes onto random latents of the batch."""

    def __init__(self, codes: int):
        super().__init__()
        self.register_buffer("idle", torch.zeros(codes, dtype=torch.int64))
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def start(self, model: VQGAN, x: Tensor, generator: torch.Generator) -> None:
        """Once: the codebook begins as random latents of this batch."""
        if self.initialised:
            return
        codes = model.quantize.embedding.weight
        codes.copy_(ranks.of_first(self._random_rows(model, x, len(codes), generator)))
        self.initialised.fill_(True)

    @torch.no_grad()
    def update(self, model: VQGAN, quantized, x: Tensor, revive_after: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """-> (share of the codebook chosen in this batch, codes moved: none of a frozen codebook)."""
        codes = model.quantize.embedding.weight
        chosen = ranks.anywhere(torch.bincount(quantized.indices, minlength=len(self.idle)) > 0)
        self.idle.add_(1).masked_fill_(chosen, 0)
        dead = (self.idle >= revive_after).nonzero().flatten() if codes.requires_grad else []
        if len(dead):
            codes[dead] = ranks.of_first(self._random_rows(model, x, len(dead), generator))
            self.idle[dead] = 0
        return chosen.float().mean(), torch.tensor(float(len(dead)))

    @staticmethod
    def _random_rows(model: VQGAN, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
        rows = model.quantize.rows(model.encode(x) / model.latent_scale)
        return rows[torch.randint(len(rows), (count,), generator=generator, device=rows.device)]


def _patch_discriminator() -> nn.Module:
    """taming-transformers' PatchGAN, used unchanged."""
    try:
        from taming.modules.discriminator.model import NLayerDiscriminator, weights_init
    except ImportError:
        raise UserError("loss.adversarial needs taming-transformers; install it with: pip install 'ldm_dream[train]'.") from None
    return NLayerDiscriminator(input_nc=3, n_layers=3).apply(weights_init)
