"""What an autoencoder run minimises: L1, LPIPS and the codebook's losses, and a critic's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_dream.config.autoencoder import VQGANConfig
from ldm_dream.config.run import AutoencoderRun
from ldm_dream.data.pairs import Batch, PairDataset
from ldm_dream.errors import UserError
from ldm_dream.networks.autoencoders import build_autoencoder
from ldm_dream.networks.vqgan import VQGAN, Quantized
from ldm_dream.training import distributed
from ldm_dream.training.critic import Critic
from ldm_dream.training.diffusion import on_host
from ldm_dream.training.objective import Part
from ldm_dream.training.perceptual import Perceptual


class AutoencoderObjective:
    """VQGAN (arXiv 2012.09841, Sec. 3.1): L1 + LPIPS + codebook, and a hinge PatchGAN weighted by
    the ratio of gradient norms.
    """

    def __init__(
        self, run: AutoencoderRun, networks: Mapping[str, nn.Module], teacher: VQGAN | None = None
    ):
        cfg = run.loss
        if not isinstance(run.autoencoder, VQGANConfig):
            raise UserError(
                f"autoencoder.kind={run.autoencoder.kind} cannot be trained, only imported; train a vqgan."
            )
        self.run, self.teacher = run, teacher
        self.perceptual = Perceptual(cfg, networks)
        self.model = VQGAN(run.autoencoder)
        if teacher is not None:
            self.model.quantize.load_state_dict(teacher.quantize.state_dict())
        self.call: nn.Module = self.model  # as it is called in training
        self.critic = Critic(cfg) if cfg.adversarial else None
        # a codebook that was trained is kept
        is_trained = teacher is not None or run.train.init_from is not None
        self.usage = CodeUsage(run.autoencoder.n_embed, is_trained)
        self.trained = nn.ModuleDict({"model": self.model, "usage": self.usage})
        self.parts = [
            Part("autoencoder", list(self.model.parameters()), self.loss, lambda: self.call)
        ]
        if self.critic is not None:
            self.trained["discriminator"] = self.critic.discriminator
            self.parts.append(self.critic.part)

    def share_gradients(self) -> None:
        # the codebook is unused before it begins
        self.call = distributed.share_gradients(self.model, self.run.loss.codebook_start > 0)
        if self.critic is not None:
            self.critic.share_gradients()

    def loss(
        self, batch: Batch, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        cfg, x = self.run.loss, batch.hr
        assert x is not None, "latents are cached for diffusion only"
        quantizes = step >= cfg.codebook_start
        if quantizes:
            self.usage.start(self.model, x, generator)
        fake, quantized, h = self.call(x, quantizes)
        l1 = F.l1_loss(fake.float(), x)
        reconstruction, logged = cfg.l1 * l1, {"l1": l1.detach()}
        for name, (weight, term) in self.perceptual.terms(fake, x, on_host(generator)).items():
            reconstruction = reconstruction + weight * term
            logged[name] = term.detach()  # else it would keep the networks' activations
        total = reconstruction
        if self.critic is not None and step >= cfg.adversarial_start:
            last = self.model.decoder.conv_out.weight
            total, logged["adversarial"] = self.critic.joined(x, fake, reconstruction, last)
        if self.teacher is not None:
            logged["latent"] = F.mse_loss(h.float(), self._taught(x))
            total = total + cfg.latent * logged["latent"]
        if quantized is not None:
            total = (
                total
                + cfg.codebook * quantized.codebook_loss
                + cfg.commitment * quantized.commitment_loss
            )
            logged["quantization"] = quantized.commitment_loss
            self.usage.note(quantized, x)
        return total, logged

    @torch.no_grad()
    def _taught(self, x: Tensor) -> Tensor:
        """The teacher's latents, unscaled as the model's own."""
        assert self.teacher is not None
        return self.teacher.encode(x).float() / self.teacher.latent_scale

    def begins(self, step: int) -> str | None:
        cfg, found = self.run.loss, []
        if step == cfg.codebook_start and not self.usage.started:
            found.append("the codebook begins, as random latents")
        if self.critic is not None and step == cfg.adversarial_start:
            found.append("the discriminator begins")
        return f"step {step}: {' and '.join(found)}" if found else None

    def after_step(self, generator: torch.Generator) -> dict[str, Tensor]:
        return self.usage.after_step(self.model, self.run.loss.revive_after, generator)

    def evaluate(self, hr: Tensor, lr: Tensor, generators: list[torch.Generator]) -> Tensor:
        return self.model(hr, bool(self.usage.initialised))[0]


class CodeUsage(nn.Module):
    """Counts the optimizer steps for which each code was not chosen, and moves dead codes onto random latents
    of the batch.
    """

    idle: Tensor  # int64 [codes]
    initialised: Tensor  # bool: the codebook holds latents, no random numbers

    def __init__(self, codes: int, initialised: bool):
        super().__init__()
        self.register_buffer("idle", torch.zeros(codes, dtype=torch.int64))
        self.register_buffer("initialised", torch.tensor(initialised))
        # as the host knows it: reading `initialised` waits for the device
        self.started = initialised
        self._chosen: Tensor | None = None  # bool [codes], of this step so far
        self._x: Tensor | None = None  # its last micro-batch

    @torch.no_grad()
    def start(self, model: VQGAN, x: Tensor, generator: torch.Generator) -> None:
        """Once: the codebook begins as random latents of this batch."""
        if self.started:
            return
        self.started = True
        if self.initialised:  # of a checkpoint
            return
        codes = model.quantize.embedding.weight
        codes.copy_(distributed.of_first(self._random_rows(model, x, len(codes), generator)))
        self.initialised.fill_(True)

    def note(self, quantized: Quantized, x: Tensor) -> None:
        """The codes that a micro-batch [B,3,H,W] of this step has chosen."""
        chosen = torch.bincount(quantized.indices, minlength=len(self.idle)) > 0
        self._chosen = chosen if self._chosen is None else self._chosen | chosen
        self._x = x

    @torch.no_grad()
    def after_step(
        self, model: VQGAN, revive_after: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Share of the codebook chosen in this step, and codes moved: none of a frozen codebook, and
        none before quantisation begins.
        """
        if self._chosen is None or self._x is None:
            return {}
        codes = model.quantize.embedding.weight
        chosen = distributed.anywhere(self._chosen)
        self.idle.add_(1).masked_fill_(chosen, 0)
        dead = (self.idle >= revive_after).nonzero().flatten() if codes.requires_grad else []
        if len(dead):
            rows = self._random_rows(model, self._x, len(dead), generator)
            codes[dead] = distributed.of_first(rows)
            self.idle[dead] = 0
        self._chosen = self._x = None
        moved = torch.tensor(float(len(dead)), device=chosen.device)
        return {"codes_used": chosen.float().mean(), "codes_revived": moved}

    @staticmethod
    def _random_rows(model: VQGAN, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
        rows = model.quantize.rows(model.encode(x) / model.latent_scale)
        return rows[torch.randint(len(rows), (count,), generator=generator, device=rows.device)]


SCALE_BATCHES = 16  # over which the standard deviation of latents is taken


@torch.no_grad()
def latent_scale(run: AutoencoderRun, state: dict[str, Tensor]) -> float:
    """1 / std of the unscaled latents over 16 training batches, so that a process meets about unit
    variance.
    """
    unscaled = run.autoencoder.model_copy(update={"latent_scale": 1.0})
    autoencoder = build_autoencoder(unscaled).eval()
    autoencoder.load_state_dict(state)
    data = PairDataset(run.data, 1, run.seed)
    latents = []
    for number in range(SCALE_BATCHES):
        hr = data.batch(number, run.train.batch_size).hr
        assert hr is not None
        latents.append(autoencoder.encode(hr))
    return round(1 / torch.cat(latents).std().item(), 4)
