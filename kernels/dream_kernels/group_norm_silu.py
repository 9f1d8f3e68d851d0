"""silu(group_norm(x) (1 + scale) + shift) as one op with its own backward."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _group_norm_cpu as cpu


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, scale: Tensor | None = None, shift: Tensor | None = None,
    silu: bool = True,
) -> Tensor:  # fmt: skip
    """`reference.group_norm_silu`."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    weight, bias = weight.to(dtype).expand(x.shape[:2]), bias.to(dtype).expand(x.shape[:2])
    if scale is not None:
        weight, bias = weight * (1 + scale.to(dtype)), bias * (1 + scale.to(dtype))
    if shift is not None:
        bias = bias + shift.to(dtype)
    return cpu.group_norm_silu(x, weight.contiguous(), bias.contiguous(), groups, eps, silu)
