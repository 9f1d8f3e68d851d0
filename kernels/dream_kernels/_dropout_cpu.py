"""dropout: torch's own, but on a CPU in C++ of our own (`dropout_cpu.cpp`), which takes a fifth of
its time and keeps no mask.

torch draws one random number after the other there. Ours makes them where they are used, so threads
share the work, from a seed that follows torch.manual_seed; the backward makes them again. It takes
float32 and bfloat16, and the probability is the nearest multiple of 2^-16; other types, and a
machine without a compiler, have their mask drawn by torch from that seed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._cpp import NAMES, call, library
from .backend import wants_reference
from .reference import layout


def dropout(x: Tensor, p: float) -> Tensor:
    """0 with probability p, else x / (1 - p) (Srivastava et al. 2014); p in [0,1], else torch's
    ValueError.
    """
    if p == 0:
        return x
    if x.device.type != "cpu" or wants_reference() or not 0 < p < 1:
        return F.dropout(x, p)
    return dropout_op(x, p)[0]


@torch.library.custom_op(
    "dream::dropout", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
def dropout_op(x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """-> y in `format_like(x)`, and the seed, int64 []."""
    seed = torch.empty((), dtype=torch.int64).random_(-(2**63), None)
    return drop(x, p, seed, format_like(x)), seed


@torch.library.custom_op("dream::dropout_backward", mutates_args=())
def dropout_backward(dy: Tensor, p: float, seed: Tensor, channels_last: bool) -> Tensor:
    """channels_last: whether y was; a place in memory decides."""
    return drop(dy, p, seed, torch.channels_last if channels_last else torch.contiguous_format)


def format_like(x: Tensor) -> torch.memory_format:
    """channels_last for parts of such features too, which lie less densely."""
    return layout(torch.empty_like(x, device="meta"))


def drop(x: Tensor, p: float, seed: Tensor, memory_format: torch.memory_format) -> Tensor:
    x = x.contiguous(memory_format=memory_format)
    y = torch.empty_like(x)
    cpp = library("dropout_cpu") if x.dtype in NAMES else None
    if cpp is None:
        kept = y.bernoulli_(1 - p, generator=torch.Generator().manual_seed(int(seed)))
        return kept.mul_(x).div_(1 - p)
    threshold = min(round(p * 2**16), 2**16 - 1)
    function = getattr(cpp, f"dropout_{NAMES[x.dtype]}")
    call(function, x, y, x.numel(), seed.item(), threshold, torch.get_num_threads())
    return y


@dropout_op.register_fake
def _(x, p):
    return torch.empty_like(x, memory_format=format_like(x)), torch.empty((), dtype=torch.int64)


@dropout_backward.register_fake
def _(dy, p, seed, channels_last):
    like = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty_like(dy, memory_format=like)


def _save(ctx, inputs, output):
    _, ctx.p = inputs
    y, seed = output
    ctx.channels_last = layout(y) is torch.channels_last
    ctx.save_for_backward(seed)


def _backward(ctx, dy, _):
    (seed,) = ctx.saved_tensors
    return dropout_backward(dy, ctx.p, seed, ctx.channels_last), None


dropout_op.register_autograd(_backward, setup_context=_save)
