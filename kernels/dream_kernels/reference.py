"""Every op in plain torch: what a kernel must compute, and what runs where there is none.

Half-precision inputs are computed in float32 and rounded once, at the end, as kernels do; float32 and float64 stay what they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = {"cpu": 2**20}  # of distances that vq_lookup holds at once: they stay in the cache of a core; elsewhere 2**26
CODES = 64  # in a block of vq_lookup's search


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
    time, never N x K. On a GPU float32 means float32: TF32 off. The gradient of z_q goes to z straight through (VQ-VAE, arXiv
    1711.00937, 3.2) and to the chosen rows of the codebook; detach what shall not learn. z_q is not finite where z is not.
    """
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        rows = wide(z)
        fill = torch.arange(-(-len(codebook) // CODES) * CODES, device=z.device).clamp(max=len(codebook) - 1)
        codes = codebook[fill].to(rows.dtype)  # the last code fills the last block: among equals the first wins
        norms = codes.square().sum(1, keepdim=True)
        size = max(1, CHUNK_BYTES.get(z.device.type, 2**26) // (len(codes) * codes.element_size()))
        indices = torch.cat([_nearest(part, codes, norms) for part in rows.split(size)])
    z_q = F.embedding(indices, wide(codebook)) + (z - z.detach())
    return indices, z_q.to(codebook.dtype)


def _nearest(z: Tensor, codes: Tensor, norms: Tensor) -> Tensor:
    """z [n,D], codes [K,D], norms [K,1] -> [n]. Minima of blocks first: they vectorise, an argmin over all K does not."""
    distances = torch.addmm(norms, codes, z.T, alpha=-2).view(len(codes) // CODES, CODES, len(z))
    block = distances.amin(1).argmin(0)
    return block * CODES + distances[block, :, torch.arange(len(z), device=z.device)].argmin(1)


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, scale: Tensor | None = None, shift: Tensor | None = None,
    silu: bool = True,
) -> Tensor:  # fmt: skip
    """silu(norm(x) (1 + scale) + shift): x [B,C,H,W], weight, bias [C], scale, shift [B,C] -> like x in type and layout.

    norm (Wu and He, arXiv 1803.08494): mean and variance over `groups` groups of channels and all positions, the variance in a
    second pass, all of it in float32 or wider, also under autocast. silu=False: without the activation.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    features = x.to(dtype).reshape(len(x), groups, -1)
    centred = features - features.mean(2, keepdim=True)
    h = (centred * torch.rsqrt(centred.square().mean(2, keepdim=True) + eps)).reshape(x.shape)
    h = h * weight.to(dtype)[:, None, None] + bias.to(dtype)[:, None, None]
    if scale is not None:
        h = h * (1 + scale.to(dtype)[:, :, None, None])
    if shift is not None:
        h = h + shift.to(dtype)[:, :, None, None]
    return (F.silu(h) if silu else h).to(x.dtype, memory_format=layout(x))


def layout(x: Tensor) -> torch.memory_format:
    """What a result like x [B,C,H,W] is laid out as, also where x itself is a part of a larger tensor."""
    return torch.channels_last if x.stride(1) == 1 and not x.is_contiguous() else torch.contiguous_format
