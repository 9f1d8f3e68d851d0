"""Every op in plain torch: what a kernel must compute, and what runs where there is none.

Half-precision inputs are computed in float32 and rounded once, at the end, as kernels do; float32
and float64 stay what they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._layout import layout

CHUNK_BYTES = {
    "cpu": 2**20
}  # of distances that vq_lookup holds at once: they stay in the cache of a core; elsewhere 2**26
CODES = 64  # in a block of vq_lookup's search


def wide(x: Tensor) -> Tensor:
    """In float32, or float64 if it is that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def philox(counter: list[Tensor], key: list[Tensor]) -> list[Tensor]:
    """Philox-4x32-10 (Salmon et al., SC 2011): four counter words, two key words -> four random
    words; uint32 held in int64.
    """
    low = 0xFFFFFFFF

    def product(
        x: Tensor, factor: int
    ) -> tuple[Tensor, Tensor]:  # upper and lower word, without a step over 63 bits
        above, below = (x >> 16) * factor, (x & 0xFFFF) * factor
        return (above + (below >> 16)) >> 16, (((above & 0xFFFF) << 16) + below) & low

    for _ in range(10):
        (high2, low2), (high0, low0) = (
            product(counter[2], 0xCD9E8D57),
            product(counter[0], 0xD2511F53),
        )
        counter = [high2 ^ counter[1] ^ key[0], low2, high0 ^ counter[3] ^ key[1], low0]
        key = [(key[0] + 0x9E3779B9) & low, (key[1] + 0xBB67AE85) & low]
    return counter


def normal(key: Tensor, like: Tensor) -> Tensor:
    """Standard normal field shaped as `like` [B,C,h,w], float32 (float64 if like is), from a
    `noise_key`; see _noise.py.
    """
    axes = [torch.arange(n, device=key.device) for n in like.shape[1:]]
    seed, draw, row, column = (part[:, None, None, None] for part in key.unbind(1))
    counter = [axes[2] + column, axes[1][:, None] + row, axes[0][:, None, None], draw]
    words = philox(
        [word & 0xFFFFFFFF for word in counter], [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF]
    )
    u, v = (words[0] >> 9).to(wide(like).dtype) + 0.5, (words[1] >> 8).to(wide(like).dtype)
    return (-2 * (u * 2**-23).log()).sqrt() * (2 * torch.pi * (v * 2**-24)).cos()


def field(eps: Tensor, like: Tensor) -> Tensor:
    """eps in float32 or wider: itself, or made from its key."""
    return normal(eps, like) if eps.dtype == torch.int64 else wide(eps)


def dream_rectify(
    z_t: Tensor, eps: Tensor, eps_hat: Tensor, noise_std: Tensor, lam: Tensor
) -> tuple[Tensor, Tensor]:
    """DREAM, Eq. 14-15: (z_t + noise_std lam (eps - eps_hat), eps + lam (eps - eps_hat)).

    z_t, eps, eps_hat: [B,C,h,w], eps may be a noise_key; noise_std (s of the process), lam:
    [B,1,1,1]. Results in the dtypes of z_t and eps (z_t if eps is a key).
    """
    noise = field(eps, z_t)
    shift = lam * (noise - wide(eps_hat))
    return (wide(z_t) + noise_std * shift).to(z_t.dtype), (noise + shift).to(
        z_t.dtype if eps.dtype == torch.int64 else eps.dtype
    )


def dream_rectify_input(
    z_t: Tensor, eps: Tensor, eps_hat: Tensor, noise_std: Tensor, lam: Tensor
) -> Tensor:
    """The first result of dream_rectify."""
    return (wide(z_t) + noise_std * (lam * (field(eps, z_t) - wide(eps_hat)))).to(z_t.dtype)


def check_loss(prediction, kind, eps, eps_hat, lam, z0, a, s) -> None:
    """Raises ValueError for an unknown prediction or kind, or a target that lacks a part."""
    parts = {"eps": {"eps": eps}, "z0": {"z0": z0}, "v": {"eps": eps, "z0": z0, "a": a, "s": s}}
    if kind not in ("l1", "l2", "huber") or prediction not in parts:
        raise ValueError(
            f"prediction={prediction!r}, kind={kind!r}: give one of eps, z0, v and one of l1, l2, huber."
        )
    missing = [name for name, part in parts[prediction].items() if part is None]
    if missing or (eps_hat is None) != (lam is None):
        missing = missing or ["eps_hat and lam, both or neither"]
        raise ValueError(f"the target of prediction={prediction!r} needs {', '.join(missing)}.")


def dream_target(prediction: str, eps, eps_hat, lam, z0, a, s, pred: Tensor) -> Tensor:
    """What pred is compared with, float32 or wider: rectified eps, z0, or v = a rectified - s z0.
    eps_hat None: lam = 0.
    """
    if prediction == "z0":
        return wide(z0)
    noise = field(eps, pred)
    rectified = noise if eps_hat is None else noise + lam * (noise - wide(eps_hat))
    return rectified if prediction == "eps" else a * rectified - s * wide(z0)


def rho(r: Tensor, kind: str, delta: float) -> Tensor:
    """|r| ("l1"), r^2 ("l2"), or Huber's: r^2 / 2 up to |r| = delta, delta (|r| - delta / 2)
    beyond.
    """
    if kind == "huber":
        return torch.where(r.abs() <= delta, 0.5 * r * r, delta * (r.abs() - 0.5 * delta))
    return r.abs() if kind == "l1" else r.square()


def dream_l1(
    pred,
    eps=None,
    eps_hat=None,
    lam=None,
    z0=None,
    a=None,
    s=None,
    *,
    weight=None,
    prediction="eps",
    kind="l1",
    delta=1.0,
) -> Tensor:
    """weight[b] mean rho(pred - target) -> [B] float32 or wider; the target carries no gradient.

    pred, eps, eps_hat, z0: [B,C,h,w], eps may be a noise_key; lam, a, s: [B,1,1,1]; weight: [B] or
    None for 1. Needed: "eps" eps (eps_hat, lam), "z0" z0, "v" eps (eps_hat, lam), z0, a, s. kind,
    delta: "l1", "l2", or "huber" turning at delta.
    """
    check_loss(prediction, kind, eps, eps_hat, lam, z0, a, s)
    r = wide(pred) - dream_target(prediction, eps, eps_hat, lam, z0, a, s, pred).detach()
    loss = rho(r, kind, delta).flatten(1).mean(1)
    return loss if weight is None else weight * loss


def dream_l1_grad(
    pred,
    eps=None,
    eps_hat=None,
    lam=None,
    z0=None,
    a=None,
    s=None,
    *,
    weight=None,
    prediction="eps",
    kind="l1",
    delta=1.0,
) -> tuple[Tensor, Tensor]:
    """dream_l1, and the gradient of its sum in pred, in pred's dtype: weight[b] rho'(pred - target)
    / (C h w).
    """
    check_loss(prediction, kind, eps, eps_hat, lam, z0, a, s)
    r = (wide(pred) - dream_target(prediction, eps, eps_hat, lam, z0, a, s, pred)).detach()
    slope = {"l1": torch.sign, "l2": lambda r: 2 * r, "huber": lambda r: r.clamp(-delta, delta)}[
        kind
    ](r)
    weight = torch.ones(len(pred), device=pred.device) if weight is None else weight
    share = weight.reshape(-1, 1, 1, 1) / pred.shape[1:].numel()
    return weight * rho(r, kind, delta).flatten(1).mean(1), (share * slope).to(pred.dtype)


def q_sample(z0: Tensor, z_lr: Tensor, eps: Tensor, a: Tensor, b: Tensor, s: Tensor) -> Tensor:
    """z_t = a z0 + b z_lr + s eps. z0, z_lr, eps: [B,C,h,w], eps may be a noise_key; a, b, s:
    [B,1,1,1]. In z0's dtype.
    """
    return (a * wide(z0) + b * wide(z_lr) + s * field(eps, z0)).to(z0.dtype)


def q_sample_eps(
    z0: Tensor, z_lr: Tensor, eps: Tensor, a: Tensor, b: Tensor, s: Tensor
) -> tuple[Tensor, Tensor]:
    """q_sample's z_t, and its eps in z0's dtype."""
    noise = field(eps, z0)
    return q_sample(z0, z_lr, noise, a, b, s), noise.to(z0.dtype, copy=True)


def sampler_step(
    z_t: Tensor,
    z0_hat: Tensor,
    eps: Tensor,
    z_factor: Tensor,
    z0_factor: Tensor,
    sigma: Tensor,
    clip: float | None = None,
) -> Tensor:
    """z_factor z_t + z0_factor clamp(z0_hat, -clip, clip) + sigma eps. Tensors: [B,C,h,w], eps may
    be a noise_key; factors: [B,1,1,1]; clip=None: no clamp. In z_t's dtype.
    """
    z0 = wide(z0_hat) if clip is None else wide(z0_hat).clamp(-clip, clip)
    return (z_factor * wide(z_t) + z0_factor * z0 + sigma * field(eps, z_t)).to(z_t.dtype)


def vq_lookup(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest code by squared distance: z [N,D], codebook [K,D] -> indices int64 [N], z_q =
    codebook[indices] [N,D].

    argmin of |e|^2 - 2 z.e in float32 or wider (also under autocast), ties to the lowest index;
    CHUNK_BYTES of distances at a time, never N x K. On a GPU float32 means float32: TF32 off. The
    gradient of z_q goes to z straight through (VQ-VAE, arXiv 1711.00937, 3.2) and to the chosen
    rows of the codebook; detach what shall not learn. z_q is not finite where z is not.
    """
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        rows = wide(z)
        fill = torch.arange(-(-len(codebook) // CODES) * CODES, device=z.device).clamp(
            max=len(codebook) - 1
        )
        codes = codebook[fill].to(
            rows.dtype
        )  # the last code fills the last block: among equals the first wins
        norms = codes.square().sum(1, keepdim=True)
        size = max(1, CHUNK_BYTES.get(z.device.type, 2**26) // (len(codes) * codes.element_size()))
        indices = torch.cat([_nearest(part, codes, norms) for part in rows.split(size)])
    z_q = F.embedding(indices, wide(codebook)) + (z - z.detach())
    return indices, z_q.to(codebook.dtype)


def _nearest(z: Tensor, codes: Tensor, norms: Tensor) -> Tensor:
    """z [n,D], codes [K,D], norms [K,1] -> [n]. Minima of blocks first: they vectorise, an argmin
    over all K does not.
    """
    distances = torch.addmm(norms, codes, z.T, alpha=-2).view(len(codes) // CODES, CODES, len(z))
    block = distances.amin(1).argmin(0)
    return block * CODES + distances[block, :, torch.arange(len(z), device=z.device)].argmin(1)


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, scale: Tensor | None = None, shift: Tensor | None = None,
    silu: bool = True,
) -> Tensor:  # fmt: skip
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
