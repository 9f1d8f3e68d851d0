"""What a diffusion run minimises: DREAM's loss (`loss.py`) in the autoencoder's latent space, and
terms of the picture that its estimate decodes to: L1, LPIPS, a critic's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_dream.config.run import DiffusionRun
from ldm_dream.data.pairs import Batch
from ldm_dream.data.resize import size_of, upsample
from ldm_dream.denoiser import Denoiser
from ldm_dream.loss import diffusion_loss
from ldm_dream.networks import build_network
from ldm_dream.networks.base import Autoencoder
from ldm_dream.process import build_process
from ldm_dream.sampler import Noise, gaussian, plan, sample
from ldm_dream.training import distributed
from ldm_dream.training.critic import Critic
from ldm_dream.training.objective import Part
from ldm_dream.training.perceptual import Perceptual


def on_host(generator: torch.Generator) -> torch.Generator:
    """`generator`, or one of the same seed on the host: what is drawn from it waits for no device."""
    if generator.device.type == "cpu":
        return generator
    return torch.Generator().manual_seed(generator.initial_seed())


class DiffusionObjective:
    """`training.objective.Objective` of a `DiffusionRun`. Raises UserError for a loss that lacks its
    weights, ValueError for a network that cannot be built.
    """

    def __init__(
        self, run: DiffusionRun, autoencoder: Autoencoder, networks: Mapping[str, nn.Module] = {}
    ):
        self.run, self.autoencoder = run, autoencoder
        self.perceptual = Perceptual(run.loss, networks)
        self.model = build_network(run.network)
        self.process = build_process(run.process)
        self.denoiser = Denoiser(self.model, self.process, run.condition, run.prediction)
        self.visited = torch.tensor(plan(self.process, run.sampler))
        self.trained: nn.Module = self.model
        self.parts = [Part("network", list(self.model.parameters()), self.loss, self._called)]
        self.critic = Critic(run.loss) if run.loss.adversarial else None
        if self.critic is not None:
            judge = self.critic.discriminator
            self.trained = nn.ModuleDict({"model": self.model, "discriminator": judge})
            self.parts.append(self.critic.part)

    def _called(self) -> nn.Module:
        assert isinstance(self.denoiser.call, nn.Module)
        return self.denoiser.call

    def share_gradients(self) -> None:
        self.denoiser.call = distributed.share_gradients(self.model)
        if self.critic is not None:
            self.critic.share_gradients()

    def loss(
        self, batch: Batch, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        z0, z_lr = self.latents(batch)
        host = on_host(generator)
        t = self.steps(len(z0), host)
        eps = torch.randn(z0.shape, generator=generator, device=z0.device)
        inputs = self.denoiser.prepare(batch.lr, z_lr)
        loss, z0_hat = diffusion_loss(self.denoiser, z0, inputs, t, eps, self.run.loss)
        total, logged = loss.mean(), {}
        logged["diffusion"] = total.detach()
        of_picture, terms = self.picture_loss(batch.hr, z0, z0_hat, step, host)
        return total + of_picture, logged | terms

    def steps(self, count: int, generator: torch.Generator) -> Tensor:
        """Those to train on, [count]: the first ones by chance of those that the sampler visits, as
        many as `sampler_share` says, the others as the process draws them.
        """
        t = self.process.draw(count, generator)
        if first := round(self.run.loss.sampler_share * count):
            chosen = torch.randint(len(self.visited), (first,), generator=generator)
            t[:first] = self.visited[chosen]
        return t

    @torch.no_grad()
    def latents(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(z0, z_lr): cached ones if the batch brings them."""
        if batch.z0 is not None and batch.z_lr is not None:
            return batch.z0, batch.z_lr
        assert batch.hr is not None, "left out only where latents are cached"
        pictures = torch.cat([batch.hr, upsample(batch.lr, size_of(batch.hr))])
        z0, z_lr = self.autoencoder.encode(pictures).float().chunk(2)
        return z0, z_lr

    def picture_loss(
        self,
        hr: Tensor | None,
        z0: Tensor,
        z0_hat: Tensor,
        step: int,
        generator: torch.Generator,
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """(loss, its terms by name) between hr and the decoded z0_hat of `decode_samples` samples. The
        critic compares with the decoded z0: by what the decoder loses it would know every picture.
        """
        cfg = self.run.loss
        if hr is None or not (cfg.pixel or self.perceptual.weights):
            return 0.0, {}
        hr = hr[: cfg.decode_samples]
        decoded = self.autoencoder.decode(z0_hat[: cfg.decode_samples])
        terms = {"pixel": (cfg.pixel, F.l1_loss(decoded.float(), hr))} if cfg.pixel else {}
        terms |= self.perceptual.terms(decoded, hr, generator)
        logged = {name: term.detach() for name, (_, term) in terms.items()}
        loss = torch.stack([weight * term for weight, term in terms.values()]).sum()
        if self.critic is not None and step >= cfg.adversarial_start:
            with torch.no_grad():
                real = self.autoencoder.decode(z0[: cfg.decode_samples])
            loss, logged["adversarial"] = self.critic.joined(real, decoded, loss, z0_hat)
        return loss, logged

    def begins(self, step: int) -> str | None:
        begins = self.critic is not None and step == self.run.loss.adversarial_start
        return f"step {step}: the discriminator begins" if begins else None

    def after_step(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {}

    def evaluate(self, hr: Tensor, lr: Tensor, generators: list[torch.Generator]) -> Tensor:
        """SR pictures [B,3,H,W] of validation pairs with the config's sampler."""
        z_lr = self.autoencoder.encode(upsample(lr, size_of(hr))).float()
        inputs, noise = self.denoiser.prepare(lr, z_lr), _each(z_lr, generators)
        z0 = sample(self.denoiser, inputs, self.run.sampler, noise, clip=self.autoencoder.bound)
        return self.autoencoder.decode(z0)


def _each(z_lr: Tensor, generators: list[torch.Generator]) -> Noise:
    """Noise shaped as z_lr, of which each sample has a generator of its own."""
    parts = [gaussian(z_lr[i : i + 1], generator) for i, generator in enumerate(generators)]
    return lambda k: torch.cat([part(k) for part in parts])
