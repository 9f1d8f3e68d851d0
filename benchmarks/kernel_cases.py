"""What the kernel benchmark runs: for every row of dream_kernels.OPS its arguments at the networks'
shapes, and its rivals.

`rectify_and_loss` is what DREAM adds to a training step around its extra pass, as the step runs it:
z_t moved, the loss and its gradient in pred. `norm_in_block` is a compiled residual block: with
group norm's kernel in it (ours), or with its reference, which inductor fuses (compiled).

A maker turns (shape, dtype, device) into arguments and the least possible traffic: bytes of every
input read once, every result written once. SHAPES are pixels of SR3 and IDM, latents of ResShift,
and enough pixels to see a bandwidth.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import dream_kernels
from dream_kernels import dream_loss, dream_rectify

from .official import mean_l1, rectified

SHAPES = ((4, 3, 128, 128), (16, 3, 64, 64), (16, 3, 256, 256))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Case(NamedTuple):
    make: Callable  # (shape, dtype, device) -> arguments, bytes
    shapes: tuple[tuple[int, ...], ...] = SHAPES
    dtypes: tuple[str, ...] = tuple(DTYPES)
    # what one writes in plain torch, also given to torch.compile; None: the reference
    eager: Callable | None = None
    ours: Callable | None = None  # where it is more than the op of this name
    # arguments -> further providers, where they are installed
    others: Callable[..., dict[str, Callable]] = lambda *_: {}
    own_on_cpu: bool = False  # on a CPU ours is something else than `eager`
    gradients: int = 0  # of so many first arguments: also timed with the backward
    backward_passes: int = 0  # tensors like the first that it must read or write


def fields(count: int, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> list[Tensor]:
    return list(torch.randn(count, *shape, device=device).to(dtype))


def factors(count: int, shape: tuple[int, ...], device: str) -> list[Tensor]:
    return list(torch.rand(count, shape[0], 1, 1, 1, device=device))


def elementwise(reads: int, writes: int, scalars: int) -> Callable:
    """Maker of an op on `reads` tensors of one shape and `scalars` factors a sample."""

    def make(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[tuple, int]:
        tensors = fields(reads, shape, dtype, device)
        size = (reads + writes) * tensors[0].numel() * tensors[0].element_size()
        return (*tensors, *factors(scalars, shape, device)), size

    return make


def group_norm_silu(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[tuple, int]:
    x = torch.randn(shape, device=device).to(dtype, memory_format=torch.channels_last)
    weight, bias = torch.randn(2, shape[1], device=device)
    return (x, weight, bias, math.gcd(32, shape[1]), 1e-5), 2 * x.numel() * x.element_size()


def plain_rectify_and_loss(
    z_t: Tensor, eps: Tensor, eps_hat: Tensor, pred: Tensor, s: Tensor, lam: Tensor
) -> tuple[Tensor, ...]:
    """The official recipe's, one operation after the other."""
    z_t, target = rectified(z_t, eps, eps_hat, s, lam)
    pred = pred.detach().requires_grad_()
    loss = mean_l1(pred, target)
    return z_t, loss.detach(), *torch.autograd.grad(loss, pred)


def rectify_and_loss(
    z_t: Tensor, eps: Tensor, eps_hat: Tensor, pred: Tensor, s: Tensor, lam: Tensor
) -> tuple[Tensor, ...]:
    z_t = dream_rectify(z_t, eps, eps_hat, s, lam)
    pred = pred.detach().requires_grad_()
    loss = dream_loss(pred, eps, eps_hat, lam).mean()
    return z_t, loss.detach(), *torch.autograd.grad(loss, pred)


def torch_group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> Tensor:
    return F.silu(F.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype), eps))


def norm_in_block(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[tuple, int]:
    """Arguments of `block`, and the least traffic of its norms and sums."""
    channels = shape[1]
    x = torch.randn(shape, device=device).to(dtype, memory_format=torch.channels_last)
    kernels = torch.randn(2, channels, channels, 3, 3, device=device) / (3 * channels**0.5)
    first, last = (k.to(dtype, memory_format=torch.channels_last) for k in kernels)
    weight, bias = torch.randn(2, channels, device=device)
    return (x, first, last, weight, bias), 4 * x.numel() * x.element_size()


def block(x: Tensor, first: Tensor, last: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A residual block as the networks have it: norm with SiLU before each convolution, then a sum."""
    groups, h = math.gcd(32, x.shape[1]), x
    for kernel in (first, last):
        h = F.conv2d(
            dream_kernels.group_norm_silu(h, weight, bias, groups, 1e-5), kernel, padding=1
        )
    return x + h


@functools.cache
def compiled_block() -> Callable[..., Tensor]:
    return torch.compile(block, dynamic=False)


def block_with_kernel(*inputs: Tensor) -> Tensor:
    """Compiled, with the norm's kernel in it whatever IN_COMPILED says."""
    with dream_kernels.backend("triton"):
        return compiled_block()(*inputs)


def block_with_reference(*inputs: Tensor) -> Tensor:
    with dream_kernels.backend("reference"):
        return block(*inputs)


def vq_lookup(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[tuple, int]:
    """Latents [B,D,h,w] as rows, and vq-f4's 8192 codes."""
    rows = shape[0] * shape[2] * shape[3]
    z, codebook = (
        torch.randn(rows, shape[1], device=device),
        torch.randn(8192, shape[1], device=device),
    )
    return (z.to(dtype), codebook.to(dtype)), (
        2 * z.numel() + codebook.numel()
    ) * dtype.itemsize + 8 * rows


def whole_matrix_lookup(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """All N x K distances at once, as taming-transformers' VectorQuantizer2
    (github.com/CompVis/taming-transformers @3ba01b2).
    """
    distances = (
        z.square().sum(1, keepdim=True)
        + codebook.square().sum(1)
        - 2 * torch.einsum("nd,dk->nk", z, codebook.T)
    )
    indices = distances.argmin(1)
    return indices, z + (F.embedding(indices, codebook) - z).detach()


def taming_quantizer(z: Tensor, codebook: Tensor) -> dict[str, Callable]:
    """VectorQuantizer2 where taming-transformers is the repository's, VectorQuantizer where it is
    the package index's 0.0.1.
    """
    try:
        from taming.modules.vqvae import quantize
    except ImportError:
        return {}
    name = next(n for n in ("VectorQuantizer2", "VectorQuantizer") if n in vars(quantize))
    quantizer = getattr(quantize, name)(*codebook.shape, beta=0.25).to(z)
    quantizer.embedding.weight.data.copy_(codebook)
    return {f"taming {name}": lambda: quantizer(z.T[None, :, :, None])[0]}


CASES: dict[str, Case] = {
    "q_sample": Case(elementwise(3, 1, scalars=3)),
    "dream_rectify": Case(elementwise(3, 1, scalars=2)),
    "dream_loss": Case(elementwise(3, 0, scalars=1), gradients=1, backward_passes=1),
    "rectify_and_loss": Case(
        elementwise(4, 2, scalars=2),
        eager=plain_rectify_and_loss,
        ours=rectify_and_loss,
        own_on_cpu=True,
    ),
    "group_norm_silu": Case(
        group_norm_silu,
        # SR3, inner 32
        shapes=((4, 32, 128, 128), (4, 64, 64, 64), (4, 128, 32, 32), (4, 512, 8, 8)),
        eager=torch_group_norm_silu,
        own_on_cpu=True,
        gradients=3,
        backward_passes=3,
    ),
    "norm_in_block": Case(
        norm_in_block,
        shapes=((4, 64, 128, 128), (4, 128, 64, 64), (4, 512, 16, 16)),
        eager=block_with_reference,
        ours=block_with_kernel,
        gradients=5,
        backward_passes=6,
    ),
    "vq_lookup": Case(
        vq_lookup,
        shapes=((4, 3, 64, 64), (1, 3, 128, 128)),
        dtypes=("fp32",),  # the autoencoder looks up in float32 whatever its precision
        eager=whole_matrix_lookup,
        others=taming_quantizer,
        own_on_cpu=True,
    ),
}
