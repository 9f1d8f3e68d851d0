"""What an autoencoder run minimises: L1, LPIPS and the codebook's losses, and a hinge PatchGAN."""

from __future__ import annotations

from collections import deque

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_dream.config.model import VQGANConfig
from ldm_dream.config.run import AutoencoderRun
from ldm_dream.data.pairs import Batch
from ldm_dream.errors import UserError
from ldm_dream.networks.vqgan import VQGAN
from ldm_dream.training import distributed
from ldm_dream.training.objective import Part


class AutoencoderObjective:
    """VQGAN (arXiv 2012.09841, Sec. 3.1): L1 + LPIPS + codebook, and a hinge PatchGAN weighted by
    the ratio of gradient norms.
    """

    def __init__(self, run: AutoencoderRun, lpips: nn.Module | None):
        cfg = run.loss
        if cfg.lpips and lpips is None:
            raise UserError(
                "loss.lpips is set but lpips_weights is not: name a file with AlexNet and LPIPS weights."
            )
        if not isinstance(run.autoencoder, VQGANConfig):
            raise UserError(
                f"autoencoder.kind={run.autoencoder.kind} cannot be trained, only imported; train a vqgan."
            )
        self.run, self.lpips = run, lpips
        self.model = VQGAN(run.autoencoder)
        self.discriminator = _patch_discriminator() if cfg.adversarial else None
        self.trained = nn.ModuleDict(
            {"model": self.model, "usage": CodeUsage(run.autoencoder.n_embed)}
        )
        self.trained["usage"].initialised.fill_(
            run.train.init_from is not None
        )  # a codebook that was trained is kept
        self.parts = [Part("autoencoder", list(self.model.parameters()), self.loss)]
        if self.discriminator is not None:
            self.trained["discriminator"] = self.discriminator
            parameters = list(self.discriminator.parameters())
            self.parts.append(
                Part("discriminator", parameters, self.discriminator_loss, cfg.adversarial_start)
            )
        self.network, self.critic = (
            self.model,
            self.discriminator,
        )  # as called in training: see share_gradients
        self._made: deque[tuple[Tensor, Tensor]] = (
            deque()
        )  # (real, fake) of this step, for the discriminator's part

    def share_gradients(self) -> None:
        self.network = distributed.share_gradients(
            self.model, some_unused=True
        )  # the codebook, before it begins
        if self.discriminator is not None:
            self.critic = distributed.share_gradients(self.discriminator)

    def loss(
        self, batch: Batch, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
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
            total = (
                total
                + cfg.codebook * quantized.codebook_loss
                + cfg.commitment * quantized.commitment_loss
            )
            logged["quantization"] = quantized.commitment_loss
            logged["codes_used"], logged["codes_revived"] = usage.update(
                self.model, quantized, x, cfg.revive_after, generator
            )
        if self.discriminator is not None and step >= cfg.adversarial_start:
            adversarial = -self.discriminator.requires_grad_(False)(fake).float().mean()
            total = (
                total
                + cfg.adversarial * self._adaptive_weight(reconstruction, adversarial) * adversarial
            )
            logged["adversarial"] = adversarial
            self._made.append((x, fake.detach()))
        return total, logged

    def discriminator_loss(
        self, batch: Batch, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
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
    """Counts the steps for which each code was not chosen, and moves dead codes onto random latents
    of the batch.
    """

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
        codes.copy_(distributed.of_first(self._random_rows(model, x, len(codes), generator)))
        self.initialised.fill_(True)

    @torch.no_grad()
    def update(
        self, model: VQGAN, quantized, x: Tensor, revive_after: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """-> (share of the codebook chosen in this batch, codes moved: none of a frozen codebook)."""
        codes = model.quantize.embedding.weight
        chosen = distributed.anywhere(
            torch.bincount(quantized.indices, minlength=len(self.idle)) > 0
        )
        self.idle.add_(1).masked_fill_(chosen, 0)
        dead = (self.idle >= revive_after).nonzero().flatten() if codes.requires_grad else []
        if len(dead):
            codes[dead] = distributed.of_first(self._random_rows(model, x, len(dead), generator))
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
        raise UserError(
            "loss.adversarial needs taming-transformers; install it with: pip install 'ldm_dream[train]'."
        ) from None
    return NLayerDiscriminator(input_nc=3, n_layers=3).apply(weights_init)
