"""What the rest of the package knows of a network and of an autoencoder.

Base classes rather than protocols, since both are modules too: they are moved, trained and saved.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Network(nn.Module, ABC):
    """What a denoiser calls. Its `forward` is (z_t [B,C,h,w], emb, *features) -> [B,Cout,h,w]."""

    multiple: int  # h and w are padded to multiples of it
    align: int  # parts of a picture that begin on multiples of it are seen as in the whole
    cond_factor: int | None  # size of the condition over that of z_t; None: LR at its own size
    sees_noise_level: bool  # its t is the noise level sqrt(abar), else the timestep
    repeated_blocks: tuple[type[nn.Module], ...]  # what is compiled, each block a graph of its own

    @abstractmethod
    def embed(self, t: Tensor) -> Tensor:
        """t [B] -> what every block receives of it, [B,E]."""

    @abstractmethod
    def prepare(self, cond: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """The condition for a z_t of `size` (h, w) -> the features of it that `forward` takes."""


class Autoencoder(nn.Module, ABC):
    """Pictures [B,3,H,W] in [-1,1] to latents [B,C,H/f,W/f] and back."""

    factor: int  # f; H and W are multiples of it
    channels: int  # C
    bound: float | None  # |z| of a picture, to which samplers clip; None: not bounded

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor: ...
