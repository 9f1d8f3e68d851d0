"""What a run adds up on the device between two lines of its log, and looks at only there: reading a
number from a GPU waits until it has done all that was asked of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_dream.training import distributed


class Means:
    """Running means since they were last taken. They are part of a checkpoint, so that a row after a
    resume is the mean over all of its steps.
    """

    def __init__(self):
        self.sums: dict[str, Tensor] = {}  # name -> float64 [sum, count]

    def add(self, scalars: dict[str, Tensor]) -> None:
        for name, value in scalars.items():
            value = value.detach().to(torch.float64)
            pair = torch.stack([value, torch.ones_like(value)])
            self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def state(self) -> dict[str, Tensor]:
        """Over all processes, each of which has to call: one exchange for all names."""
        if not self.sums:
            return {}
        names = sorted(self.sums)
        together = distributed.mean(torch.stack([self.sums[name] for name in names]))
        return dict(zip(names, together.unbind()))

    def take(self) -> dict[str, float]:
        found = self.state()
        self.sums = {}
        if not found:
            return {}
        rows = torch.stack(list(found.values())).tolist()
        return {name: total / count for name, (total, count) in zip(found, rows)}


class Finite:
    """Remembers on the device the first step at which a number was not finite."""

    def __init__(self, device: torch.device):
        self.first = torch.full((), -1, dtype=torch.int64, device=device)

    def look(self, step: int, *numbers: Tensor) -> None:
        fine = torch.stack([number.detach().double().isfinite().all() for number in numbers]).all()
        self.first.masked_fill_(~fine & (self.first < 0), step)

    def failed(self) -> int | None:
        """That step; None if there was none. Waits for the device."""
        first = int(self.first)
        return None if first < 0 else first
