"""Number formats by the names that users give them, and which one a device computes fastest."""

from __future__ import annotations

import math
import time
from functools import cache

import torch
import torch.nn.functional as F

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def name_of(dtype: torch.dtype) -> str:
    """One of DTYPES, as users name it."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def fastest(device: torch.device) -> str:
    """The name of that in which this device has fast hardware: bf16 on CUDA from Ampere on, on xpu, on
    CPUs with AMX and on those whose AVX512-BF16 is the faster one, fp16 on older CUDA devices, else
    fp32.
    """
    if device.type == "cuda":
        newer = torch.cuda.get_device_capability(device) >= (8, 0)
        return "bf16" if newer else "fp16"
    if device.type == "cpu":
        # what oneDNN itself asks; without these instructions bf16 is emulated
        if torch.cpu._is_amx_tile_supported():
            return "bf16"
        has_bf16 = torch.cpu._is_avx512_bf16_supported()
        return "bf16" if has_bf16 and convolves_faster_in_bf16() else "fp32"
    return "bf16" if device.type == "xpu" else "fp32"


@cache
@torch.inference_mode()
def convolves_faster_in_bf16() -> bool:
    """Whether this CPU's convolution in bf16 takes less than 0.8 of its time in fp32: measured once, in
    some milliseconds. Intel's AVX512-BF16 has one unit where fp32 has two, and takes longer. The
    margin keeps the answer the same in every process.
    """
    shapes = (1, 64, 64, 64), (64, 64, 3, 3)  # features, weights
    best = dict.fromkeys((torch.float32, torch.bfloat16), math.inf)
    layers = {
        dtype: [torch.ones(s, dtype=dtype).to(memory_format=torch.channels_last) for s in shapes]
        for dtype in best
    }
    for _ in range(6):
        for dtype, (features, weights) in layers.items():
            started = time.perf_counter()
            F.conv2d(features, weights, padding=1)
            best[dtype] = min(best[dtype], time.perf_counter() - started)
    return best[torch.bfloat16] < 0.8 * best[torch.float32]
