"""What a network says at a step, as numbers: the types of prediction, each of them linear.

With z_t = a z0 + b z_lr + s eps, an output is
    eps          the noise                                              (DDPM, SR3, ResShift's epsilon)
    z0           the clean latent                                       (ResShift's xstart)
    v            a eps - s z0                                           (arXiv 2202.00512)
    residual     z_lr - z0                                              (ResShift)
    eps_scale    s eps                                                  (ResShift's epsilon_scale)
    flow         eps - z0                                               (rectified flow, arXiv 2209.03003)
and gives both z0 and eps. Symbols as in `process.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_dream.schedules import ProcessError


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


Reading = Callable[[Tensor, Tensor, Tensor, Numbers], Tensor]  # output, z_t, z_lr, at


class Prediction(NamedTuple):
    """z0, eps: what an output at z_t implies. error: |error of the output| / |error of its z0| at
    one z_t, [B,1,1,1]; None where the kernels know the target.
    """

    z0: Reading
    eps: Reading
    error: Callable[[Numbers], Tensor] | None = None


def eps_of(z0: Tensor, z_t: Tensor, z_lr: Tensor, at: Numbers) -> Tensor:
    return (z_t - at.a * z0 - at.b * z_lr) / at.s


PREDICTIONS = {
    "eps": Prediction(
        lambda eps, z_t, z_lr, at: (z_t - at.b * z_lr - at.s * eps) / at.a,
        lambda eps, z_t, z_lr, at: eps,
    ),
    "z0": Prediction(lambda z0, z_t, z_lr, at: z0, eps_of),
    # y = a z0 + s eps and v = a eps - s z0, solved; a^2 + s^2 = 1 only for DDPM
    "v": Prediction(
        lambda v, z_t, z_lr, at: (
            (at.a * (z_t - at.b * z_lr) - at.s * v) / (at.a * at.a + at.s * at.s)
        ),
        lambda v, z_t, z_lr, at: (
            (at.s * (z_t - at.b * z_lr) + at.a * v) / (at.a * at.a + at.s * at.s)
        ),
    ),
    "residual": Prediction(
        lambda residual, z_t, z_lr, at: z_lr - residual,
        lambda residual, z_t, z_lr, at: eps_of(z_lr - residual, z_t, z_lr, at),
        lambda at: torch.ones_like(at.a),
    ),
    "eps_scale": Prediction(
        lambda noise, z_t, z_lr, at: (z_t - at.b * z_lr - noise) / at.a,
        lambda noise, z_t, z_lr, at: noise / at.s,
        lambda at: at.a,
    ),
    # y = a z0 + s eps and u = eps - z0, solved
    "flow": Prediction(
        lambda u, z_t, z_lr, at: (z_t - at.b * z_lr - at.s * u) / (at.a + at.s),
        lambda u, z_t, z_lr, at: (z_t - at.b * z_lr + at.a * u) / (at.a + at.s),
        lambda at: (at.a + at.s) / at.s,
    ),
}


def prediction_of(name: str) -> Prediction:
    """Raises ProcessError for a name that is not known."""
    if name not in PREDICTIONS:
        raise ProcessError(
            f"prediction {name!r} is not known; use one of {', '.join(PREDICTIONS)}."
        )
    return PREDICTIONS[name]
