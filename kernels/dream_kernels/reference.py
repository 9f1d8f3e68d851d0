"""Every op in plain torch: what a kernel must compute, and what runs where there is none.

Half-precision inputs are computed in float32 and rounded once, at the end, as kernels do; float32 and float64 stay what they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._layout import layout

CHUNK_BYTES = 64 * 2**20  # of distances held at once by vq_lookup


def wide(x: Tensor) -> Tensor:
    """In float32, or float64 if it is that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def dream_rectify(z_t: Tensor, eps: Tensor, eps_hat: Tensor, noise_std: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    """DREAM, Eq. 14-15: (z_t + noise_std lam (eps - eps_hat), eps + lam (eps - eps_hat)).

    z_t, eps, eps_hat: [B,C,h,w]; noise_std (s of the process), lam: [B,1,1,1]. Results in the dtypes of z_t and eps.
    """
    shift = lam * (wide(eps) - wide(eps_hat))
    return (wide(z_t) + noise_std * shift).to(z_t.dtype), (wide(eps) + shift).to(eps.dtype)


def dream_rectify_input(z_t: Tensor, eps: Tensor, eps_hat: Tensor, noise_std: Tensor, lam: Tensor) -> Tensor:
    """The first result of dream_rectify."""
    return dream_rectify(z_t, eps, eps_hat, noise_std, lam)[0]


def vq_lookup(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest code by squared distance: z [N,D], codebook [K,D] -> indices int64 [N], z_q = codebook[indices] [N,D].

    argmin of |e|^2 - 2 z.e in float32 or wider (also under autocast), ties to the lowest index; CHUNK_BYTES of distances at a
    time, never N x K. The indices carry no gradient. On a GPU float32 means float32: TF32 off.
    """
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        dtype = torch.promote_types(z.dtype, torch.float32)
        rows, codes = z.to(dtype), codebook.to(dtype)
        norms = codes.square().sum(1)
        size = max(1, CHUNK_BYTES // (len(codes) * codes.element_size()))
        chunks = [torch.addmm(norms, part, codes.T, alpha=-2).argmin(1) for part in rows.split(size)]
        indices = torch.cat(chunks)
    return indices, codebook[indices]


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, scale: Tensor | None = None, shift: Tensor | None = None,
    silu: bool = True,
) -> Tensor:  # fmt: skip
    """silu(norm(x) (1 + scale) + shift): x [B,C,H,W], weight, bias [C], scale, shift [B,C] -> like x in type and layout.

    norm (Wu and He, arXiv 1803.08494): mean and variance over `groups` groups of channels and all positions, the variance in a
    second pass, all of it in float32 or wider, also under autocast. silu=False: without the activation.
    """
    features = wide(x).reshape(len(x), groups, -1)
    centred = features - features.mean(2, keepdim=True)
    h = (centred * torch.rsqrt(centred.square().mean(2, keepdim=True) + eps)).reshape(x.shape)
    h = h * wide(weight)[:, None, None] + wide(bias)[:, None, None]
    if scale is not None:
        h = h * (1 + wide(scale)[:, :, None, None])
    if shift is not None:
        h = h + wide(shift)[:, :, None, None]
    return (F.silu(h) if silu else h).to(x.dtype, memory_format=layout(x))
