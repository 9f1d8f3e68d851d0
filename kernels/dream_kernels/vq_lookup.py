"""vq_lookup: nearest code of a codebook, without the N x K matrix of distances (VQ-VAE, arXiv
1711.00937, Eq. 1-3).

    indices[n] = argmin_k |e_k|^2 - 2 z_n.e_k, ties to the lowest index;   z_q[n] = e_indices[n]

A program holds ROWS latents against CODES codes at a time, in registers: the least distance that
each lane has met and the tile where it met it; lanes meet once, at the end. Bytes an element: z
read and z_q written once, and 8 / D for the index. The codebook comes from the cache, and
arithmetic decides the time: K (2D + 8) / D operations an element. Saved for the backward: the
indices. The gradient of z_q goes straight through to z, and to the codebook as the embedding's: a
sum in a fixed order, no atomics. Precision: float32 sums of products in one order for every code
(no TF32), so equal codes are equally far. Limits: K < 2^31.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# inside a kernel types are Triton's

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from ._triton import jit, run, tl
from ._variant import BYTES, Variant
from .backend import DTYPES

ROWS, CODES, WARPS = 16, 256, 4  # 32 pairs a thread


@jit
def lookup_kernel(
    z, codebook, indices, z_q, rows, codes,
    D: tl.constexpr, ROWS: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    """One program: ROWS latents against every code."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside, lanes = row < rows, tl.arange(0, CODES)
    nearest = tl.full([ROWS, CODES], float("inf"), tl.float32)
    found = tl.zeros([ROWS, CODES], tl.int32)
    for first in range(0, codes, CODES):
        # the last code fills the last tile: among equals the first wins
        code = tl.minimum(first + lanes, codes - 1).to(tl.int64)
        norm, product = tl.zeros([CODES], tl.float32), tl.zeros([ROWS, CODES], tl.float32)
        for d in range(D):
            e = tl.load(codebook + (code * D + d)).to(tl.float32)
            x = tl.load(z + (row * D + d), inside, 0).to(tl.float32)
            norm += e * e
            product += x[:, None] * e[None, :]
        distance = norm[None, :] - 2 * product
        nearer = distance < nearest
        nearest = tl.where(nearer, distance, nearest)
        found = tl.where(nearer, first, found)
    least = tl.min(nearest, 1)
    index = tl.min(tl.where(nearest == least[:, None], found + lanes[None, :], codes - 1), 1)
    index = index.to(tl.int64)
    tl.store(indices + row, index, inside)
    for d in range(D):
        x = tl.load(z + (row * D + d), inside, 0).to(tl.float32)
        e = tl.load(codebook + (index * D + d)).to(tl.float32)
        e += x - x  # as the reference: what is not finite stays seen
        tl.store(z_q + (row * D + d), e.to(z_q.dtype.element_ty), inside)


def launch(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    z, codebook = z.contiguous(), codebook.contiguous()
    (rows, width), codes = z.shape, len(codebook)
    indices, z_q = z.new_empty(rows, dtype=torch.int64), codebook.new_empty(z.shape)
    if z.numel():
        run(lookup_kernel, -(-rows // ROWS))(
            z, codebook, indices, z_q, rows, codes, width, ROWS, CODES, num_warps=WARPS
        )  # fmt: skip
    return indices, z_q


@torch.library.custom_op("dream::vq_lookup", mutates_args=())
def lookup_op(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """-> (z_q, indices): what has a gradient comes first, as torch.library.opcheck wants it."""
    way = launch if codebook.dtype in DTYPES else reference.vq_lookup
    indices, z_q = way(z, codebook)
    return z_q, indices


@lookup_op.register_fake
def _(z, codebook):
    return codebook.new_empty(z.shape), z.new_empty(len(z), dtype=torch.int64)


def _save(ctx, inputs, output):
    z, codebook = inputs
    ctx.z_dtype, ctx.codebook_dtype, ctx.codes = z.dtype, codebook.dtype, len(codebook)
    ctx.save_for_backward(output[1])


def _backward(ctx, grad, _):
    (indices,) = ctx.saved_tensors
    to_codes = None
    if ctx.needs_input_grad[1]:
        sums = torch.ops.aten.embedding_dense_backward
        to_codes = sums(reference.wide(grad), indices, ctx.codes, -1, False).to(ctx.codebook_dtype)
    return grad.to(ctx.z_dtype), to_codes


lookup_op.register_autograd(_backward, setup_context=_save)


@reference.kernel_of(reference.vq_lookup)
def vq_lookup(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """-> (indices, z_q), as `reference.vq_lookup`."""
    z_q, indices = lookup_op(z, codebook)
    return indices, z_q


def variants() -> list[Variant]:
    """Codes of two values (vq-f4-tiny) and three (vq-f4) in float32, in which the autoencoder looks
    up whatever its precision.
    """
    return [_variant(width, "fp32") for width in (2, 3)]


def _variant(width: int, dtype: str) -> Variant:
    """Operations are those of vq-f4's 8192 codes."""
    kinds = {"indices": "*i64", "rows": "i32", "codes": "i32"}
    constexprs = {"D": width, "ROWS": ROWS, "CODES": CODES}
    kinds |= dict.fromkeys(constexprs, "constexpr")
    signature = {name: kinds.get(name, f"*{dtype}") for name in lookup_kernel.arg_names}
    moved, operations = 2 * BYTES[dtype] + 8 / width, 8192 * (2 * width + 8) / width
    name, multiples = f"vq_lookup_{width}/{dtype}", ("rows", "codes")
    return Variant(
        name, lookup_kernel, signature, constexprs, WARPS, moved, moved, multiples, operations
    )
