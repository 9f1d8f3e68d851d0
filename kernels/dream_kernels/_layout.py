"""How elementwise kernels see [B,C,h,w] tensors: as B runs of C*h*w values in memory, in the order
of one dense layout for all of them, in blocks of BLOCK values of one sample.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ._triton import jit, tl
from ._variant import Variant
from .reference import layout

BLOCK, WARPS = 2048, 4  # 8 values a thread even where a warp has 64: 128 bits in half precision


def dense(first: Tensor, *others: Tensor) -> list[Tensor]:
    """All in `first`'s layout, channels-last if it has that and else contiguous. Copies only what
    lies otherwise.
    """
    return [x.contiguous(memory_format=layout(first)) for x in (first, *others)]


def grid(x: Tensor) -> tuple[tuple[int], int, int]:
    """-> programs, values a sample, programs a sample. x is not empty."""
    size = x.numel() // len(x)
    blocks = -(-size // BLOCK)
    return (len(x) * blocks,), size, blocks


def per_sample(factor: Tensor, samples: int) -> Tensor:
    """[B,1,1,1] or one number for all -> float32 [B], contiguous."""
    return factor.reshape(-1).expand(samples).float().contiguous()


@jit
def block_of(size, blocks, BLOCK: tl.constexpr):
    """This program's part of a grid of B * blocks: its sample (int64), addresses (int64), mask."""
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    inside = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return sample, sample * size + inside, inside < size


def variant(
    name: str, kernel: Any, moved: float, constexprs: dict[str, Any], **dtypes: str
) -> Variant:
    """Of a kernel over `size` values in `blocks` that moves no more than it must: `moved` bytes.
    constexprs: those beside BLOCK. dtypes: of tensors that are not float32.
    """
    constexprs = constexprs | {"BLOCK": BLOCK}
    kinds = {name: f"*{dtype}" for name, dtype in dtypes.items()} | {"size": "i32", "blocks": "i32"}
    kinds |= dict.fromkeys(constexprs, "constexpr")
    signature = {name: kinds.get(name, "*fp32") for name in kernel.arg_names}
    return Variant(name, kernel, signature, constexprs, WARPS, moved, moved, ("size",))
