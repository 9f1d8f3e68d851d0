"""What this machine's convolutions reach at best: the measure of a training step's utilisation."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F

SHAPES = ((4, 64, 128), (4, 128, 64), (4, 256, 32))  # batch, channels, side


def conv_peak(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of the best 3x3 convolution of SHAPES, forward and backward, channels-last."""
    return max(_speed(shape, device, dtype) for shape in SHAPES for _ in range(5))


def _speed(shape: tuple[int, int, int], device: str, dtype: torch.dtype) -> float:
    batch, channels, side = shape
    x = torch.randn(batch, channels, side, side, device=device, dtype=dtype)
    w = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
    x, w = (v.to(memory_format=torch.channels_last).requires_grad_() for v in (x, w))
    start = time.perf_counter()
    y = F.conv2d(x, w, padding=1)
    torch.autograd.grad(y, (x, w), y.detach())
    if device == "cuda":
        torch.cuda.synchronize()
    passes = 3  # forward, gradient in x, gradient in w
    return passes * 2 * batch * side**2 * 9 * channels**2 / (time.perf_counter() - start)
