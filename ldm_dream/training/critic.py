"""Critic: a hinge PatchGAN (VQGAN, arXiv 2012.09841, Sec. 3.1; Isola et al., CVPR 2017) beside the
model that is trained, for autoencoders and for diffusion models with a decoded estimate.
"""

from __future__ import annotations

from collections import deque

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_dream.config.run import AdversarialConfig
from ldm_dream.data.pairs import Batch
from ldm_dream.errors import UserError
from ldm_dream.training import distributed
from ldm_dream.training.objective import Part

UP = 2.0**12  # keeps gradients above 0 in half precision; a power of 2 changes no other digit


class Critic:
    """The discriminator: what it says of made pictures, then its own step on the same ones."""

    def __init__(self, cfg: AdversarialConfig):
        self.cfg = cfg
        self.discriminator = _patch_discriminator(cfg)
        self.call = self.discriminator  # as it is called in its own step
        self._made: deque[tuple[Tensor, Tensor]] = deque()  # (real, fake) of this step

    @property
    def part(self) -> Part:
        return Part(
            "discriminator",
            list(self.discriminator.parameters()),
            self.loss,
            lambda: self.call,
            self.cfg.adversarial_start,
        )

    def share_gradients(self) -> None:
        self.call = distributed.share_gradients(self.discriminator)

    def joined(
        self, real: Tensor, fake: Tensor, reconstruction: Tensor, at: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(reconstruction + weight * adversarial, adversarial), the second to be logged. real, fake:
        [B,3,H,W], kept for the discriminator's own step, whose weights get no gradient here.
        reconstruction: of `fake` alone, made from `at`. The weight is the config's factor times
        |d reconstruction / d at| / |d adversarial / d at| (Eq. 7). What lies between `fake` and the
        two terms is gone back through once, here, and freed; in half precision with gradients times
        `UP`, whatever the scale of the loss is.
        """
        self._made.append((real, fake.detach()))
        adversarial = -self.discriminator.requires_grad_(False)(fake).float().mean()
        pulls = [torch.autograd.grad(x * UP, fake)[0] for x in (reconstruction, adversarial)]
        wanted, given = (
            torch.autograd.grad(fake, at, pull, retain_graph=True)[0].norm() / UP for pull in pulls
        )
        weight = self.cfg.adversarial * (wanted / (given + 1e-4)).clamp(0, 1e4)
        value = (reconstruction + weight * adversarial).detach()
        return _Known.apply(fake, value, pulls[0] + weight * pulls[1]), adversarial.detach()

    def loss(
        self, batch: Batch, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Hinge loss on what the model's part has just made of this batch."""
        real, fake = self._made.popleft()
        self.discriminator.requires_grad_(True)
        on_real, on_fake = self.call(real).float(), self.call(fake).float()
        hinge = 0.5 * (F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean())
        return hinge, {"hinge": hinge.detach()}


class _Known(torch.autograd.Function):
    """A value of `fake` whose gradient, times `UP`, is known."""

    @staticmethod
    def forward(ctx, fake: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx, given: Tensor):  # type: ignore  # static in torch's own class as well
        (gradient,) = ctx.saved_tensors
        return (gradient * (given / UP)).to(gradient.dtype), None, None


def _patch_discriminator(cfg: AdversarialConfig) -> nn.Module:
    """taming-transformers' PatchGAN, used unchanged."""
    try:
        from taming.modules.discriminator.model import NLayerDiscriminator, weights_init
    except ImportError:
        raise UserError(
            "loss.adversarial needs taming-transformers; install it with: pip install 'ldm_dream[train]'."
        ) from None
    made = NLayerDiscriminator(
        input_nc=3, ndf=cfg.discriminator_channels, n_layers=cfg.discriminator_layers
    )
    return made.apply(weights_init)
