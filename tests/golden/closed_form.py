"""The stand-in network of sampler cases: tanh(k0 x + k1 t / unit + k2 cond + k3), with its
constants from case.json.
"""

from __future__ import annotations

import torch


def stand_in(constants: list[float], unit: float):
    """-> denoise(x, t, cond). t is the original timestep; cond broadcasts against x."""
    k0, k1, k2, k3 = constants
    return lambda x, t, cond: torch.tanh(
        k0 * x + k1 * t[:, None, None, None].to(x.dtype) / unit + k2 * cond + k3
    )
