"""What a run minimises, as `train.py` knows it: one loop trains diffusion models and autoencoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ldm_dream.data.pairs import Batch

# (batch, step, generator) -> scalar to differentiate, and tensors to log
Loss = Callable[[Batch, int, torch.Generator], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Part:
    """Parameters stepped together, by one optimizer."""

    name: str
    parameters: list[nn.Parameter]
    loss: Loss
    module: Callable[[], nn.Module]  # as it is called in training
    start: int = 0  # first step at which it is stepped


class Objective(Protocol):
    @property
    def model(self) -> nn.Module:
        """What is averaged by EMA, and released."""
        ...

    @property
    def trained(self) -> nn.Module:
        """All that a checkpoint must hold."""
        ...

    @property
    def parts(self) -> list[Part]:
        """In the order in which they are stepped."""
        ...

    def share_gradients(self) -> None:
        """Called once, before the first step: gradients become means over all processes."""
        ...

    def begins(self, step: int) -> str | None:
        """What begins at this step, to be said in the log."""
        ...

    def after_step(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Called once in every step, when all parts were stepped; -> more to log."""
        ...

    def evaluate(self, hr: Tensor, lr: Tensor, generators: list[torch.Generator]) -> Tensor:
        """The results [B,3,H,W] for validation pairs hr [B,3,H,W], lr [B,3,h,w] in [-1,1], each with
        a generator of its own.
        """
        ...
