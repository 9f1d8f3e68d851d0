"""Every op in plain torch: what a kernel must compute, and what runs where there is none; and the
public functions' choice between the two (`kernel_of`).

Half-precision inputs are computed in float32 and rounded once, at the end, as kernels do; float32
and float64 stay what they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import choice, runs_triton

# of distances that vq_lookup holds at once: they stay in the cache of a core; elsewhere 2**26
CHUNK_BYTES = {"cpu": 2**20}
CODES = 64  # in a block of vq_lookup's search


def wide(x: Tensor) -> Tensor:
    """In float32, or float64 if it is that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def layout(x: Tensor) -> torch.memory_format:
    """channels_last if x has that layout, else contiguous."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not x.is_contiguous() else torch.contiguous_format


def kernel_of(
    reference: Callable[..., Any],
    cpu: Callable[..., Any] | None = None,
    in_compiled: bool = True,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of the function that calls an op's kernel. The public function calls that, or the
    reference, or on a CPU in mode auto `cpu` where there is one. The device of the first argument
    decides; it is given by place. torch.export meets the reference, whatever the device and mode:
    it is what ONNX and other machines know. in_compiled: as of `runs_triton`.
    """

    def public(kernel: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(kernel)
        def op(x: Tensor, /, *args: Any, **options: Any) -> Any:
            if torch.compiler.is_exporting():
                return reference(x, *args, **options)
            if x.device.type == "cpu" and choice.mode == "auto":
                return (cpu or reference)(x, *args, **options)
            way = kernel if runs_triton(x, in_compiled) else reference
            return way(x, *args, **options)

        return op

    return public


def q_sample(z0: Tensor, z_lr: Tensor, eps: Tensor, a: Tensor, b: Tensor, s: Tensor) -> Tensor:
    """z_t = a z0 + b z_lr + s eps. z0, z_lr, eps: [B,C,h,w]; a, b, s: [B,1,1,1]. In z0's dtype."""
    return (a * wide(z0) + b * wide(z_lr) + s * wide(eps)).to(z0.dtype)


def dream_rectify(
    z_t: Tensor, eps: Tensor, eps_hat: Tensor, noise_std: Tensor, lam: Tensor
) -> Tensor:
    """z_t' = z_t + noise_std lam (eps - eps_hat): DREAM's input (arXiv 2312.00210, Eq. 15).

    z_t, eps, eps_hat: [B,C,h,w]; noise_std (s of the process), lam: [B,1,1,1]. In z_t's dtype.
    """
    return (wide(z_t) + noise_std * (lam * (wide(eps) - wide(eps_hat)))).to(z_t.dtype)


def dream_loss(
    pred, eps=None, eps_hat=None, lam=None, z0=None, a=None, s=None, *, prediction="eps", kind="l1"
) -> Tensor:
    """mean rho(pred - target) of each sample -> [B] float32 or wider; only pred gets a gradient.

    pred, eps, eps_hat, z0: [B,C,h,w]; lam, a, s: [B,1,1,1]. kind: `rho`. Needed for prediction
    "eps": eps (eps_hat, lam); "z0": z0; "v": eps (eps_hat, lam), z0, a, s.
    """
    check_loss(prediction, kind, eps, eps_hat, lam, z0, a, s)
    target = dream_target(prediction, eps, eps_hat, lam, z0, a, s)
    return rho(wide(pred) - target.detach(), kind).flatten(1).mean(1)


def check_loss(prediction, kind, eps, eps_hat, lam, z0, a, s) -> None:
    """Raises ValueError for an unknown prediction or kind, or a target that lacks a part."""
    parts = {"eps": {"eps": eps}, "z0": {"z0": z0}, "v": {"eps": eps, "z0": z0, "a": a, "s": s}}
    if kind not in ("l1", "l2", "huber") or prediction not in parts:
        raise ValueError(
            f"prediction={prediction!r}, kind={kind!r}: "
            "give one of eps, z0, v and one of l1, l2, huber."
        )
    missing = [name for name, part in parts[prediction].items() if part is None]
    if missing or (eps_hat is None) != (lam is None):
        missing = missing or ["eps_hat and lam, both or neither"]
        raise ValueError(f"the target of prediction={prediction!r} needs {', '.join(missing)}.")


def dream_target(prediction: str, eps, eps_hat, lam, z0, a, s) -> Tensor:
    """What pred is compared with, float32 or wider: rectified = eps + lam (eps - eps_hat) (Eq. 14),
    z0, or v = a rectified - s z0. eps_hat None: lam = 0.
    """
    if prediction == "z0":
        return wide(z0)
    noise = wide(eps)
    rectified = noise if eps_hat is None else noise + lam * (noise - wide(eps_hat))
    return rectified if prediction == "eps" else a * rectified - s * wide(z0)


def rho(r: Tensor, kind: str) -> Tensor:
    """|r| ("l1"), r^2 ("l2"), or Huber's: r^2 / 2 up to |r| = 1, |r| - 1/2 beyond."""
    if kind == "huber":
        return torch.where(r.abs() <= 1, 0.5 * r * r, r.abs() - 0.5)
    return r.abs() if kind == "l1" else r.square()


def vq_lookup(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest code: z [N,D], codebook [K,D] -> indices int64 [N], z_q = codebook[indices] [N,D].

    argmin of |e|^2 - 2 z.e in float32 or wider (also under autocast), ties to the lowest index;
    CHUNK_BYTES of distances at a time, never N x K unless exported. On a GPU, where products may be
    in TF32, in float64. The gradient of z_q goes to z straight through (VQ-VAE, arXiv 1711.00937,
    3.2) and to the chosen rows of the codebook; detach what shall not learn. z_q is not finite where
    z is not.
    """
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        # a GPU may be told to round float32 factors to TF32
        rows = z.double() if z.is_cuda else wide(z)
        search = _nearest_at_once if torch.compiler.is_exporting() else _nearest_in_parts
        indices = search(rows, codebook.to(rows.dtype))
    z_q = F.embedding(indices, wide(codebook)) + (z - z.detach())
    return indices, z_q.to(codebook.dtype)


def _nearest_at_once(z: Tensor, codebook: Tensor) -> Tensor:
    """z [N,D], codebook [K,D] -> [N], with N x K distances: the expression that exported graphs hold,
    for any N. Parts, and len(z), would bind them to the N that they were traced with.
    """
    return torch.addmm(codebook.square().sum(1), z, codebook.T, alpha=-2).argmin(1)


def _nearest_in_parts(z: Tensor, codebook: Tensor) -> Tensor:
    """z [N,D], codebook [K,D] -> [N], with CHUNK_BYTES of distances at a time."""
    last = len(codebook) - 1
    fill = torch.arange(-(-len(codebook) // CODES) * CODES, device=z.device).clamp(max=last)
    # the last code fills the last block: among equals the first wins
    codes = codebook[fill]
    norms = codes.square().sum(1, keepdim=True)
    size = max(1, CHUNK_BYTES.get(z.device.type, 2**26) // (len(codes) * codes.element_size()))
    return torch.cat([_nearest(part, codes, norms) for part in z.split(size)])


def _nearest(z: Tensor, codes: Tensor, norms: Tensor) -> Tensor:
    """z [n,D], codes [K,D], norms [K,1] -> [n]. Minima of blocks first: they vectorise, an argmin
    over all K does not.
    """
    distances = torch.addmm(norms, codes, z.T, alpha=-2).view(len(codes) // CODES, CODES, len(z))
    block = distances.amin(1).argmin(0)
    return block * CODES + distances[block, :, torch.arange(len(z), device=z.device)].argmin(1)


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    silu: bool = True,
) -> Tensor:
    """silu(norm(x) (1 + scale) + shift): x [B,C,H,W], weight, bias [C], scale, shift [B,C] -> like
    x in type and layout.

    norm (Wu and He, arXiv 1803.08494): mean and variance over `groups` groups of channels and all
    positions, the variance in a second pass, all of it in float32 or wider, also under autocast.
    silu=False: without the activation.
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


def folded(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One weight and one bias [B,C] with the effect of group_norm_silu's four, float32 or wider:
    what its kernels and its C++ take. A few kilobytes, with torch's own gradients.
    """
    w, b = (wide(v).expand(x.shape[:2]) for v in (weight, bias))
    if scale is not None:
        factor = 1 + wide(scale)
        w, b = w * factor, b * factor
    return w, b if shift is None else b + wide(shift)
