"""The numbers of a diffusion step as tensors, and their way to a device.

Host and device meet here and nowhere else in the method: what is decided or worked out on the host
goes to the device by `sent`, and nothing comes back.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class Numbers:
    """What a process says of one step a sample: a, b, s and weight, [B,1,1,1] each, and what the
    network is told of it, [B]: the ORIGINAL timestep or the noise level a.

    rows: all of them, [5,B].
    """

    rows: Tensor

    @cached_property
    def _each(self) -> tuple[Tensor, ...]:
        return self.rows.view(5, -1, 1, 1, 1).unbind()

    @property
    def a(self) -> Tensor:
        return self._each[0]

    @property
    def b(self) -> Tensor:
        return self._each[1]

    @property
    def s(self) -> Tensor:
        return self._each[2]

    @property
    def weight(self) -> Tensor:
        return self._each[3]

    @cached_property
    def told(self) -> Tensor:
        return self.rows[4]

    def of(self, samples: Tensor) -> Numbers:
        """Of some samples, int64 [n] on its device."""
        return Numbers(self.rows.index_select(1, samples))


Steps: TypeAlias = Tensor | Numbers  # indices [B], or what `Process.at` says of them


@cache
def wide(dtype: torch.dtype) -> torch.dtype:
    """float32, or dtype if that is wider: of coefficients."""
    return torch.promote_types(dtype, torch.float32)


def like(coefficient: Tensor, z: Tensor) -> Tensor:
    """A coefficient on z's device, in z's dtype or float32 if that is wider."""
    return coefficient.to(wide(z.dtype)).to(z.device)


def sent(x: Tensor, device: torch.device) -> Tensor:
    """x on `device`. From the host by way of pinned memory, so that the host goes on at once."""
    if x.device == device:
        return x
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)
