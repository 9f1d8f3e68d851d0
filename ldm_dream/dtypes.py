"""Number formats by the names that users give them, and which one a device computes fastest."""

from __future__ import annotations

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def name_of(dtype: torch.dtype) -> str:
    """One of DTYPES, as users name it."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def fastest(device: torch.device) -> str:
    """The name of that in which this device has fast hardware: bf16 on CUDA from Ampere on, on xpu, and
    on CPUs with AMX or AVX512-BF16, fp16 on older CUDA devices, else fp32.
    """
    if device.type == "cuda":
        newer = torch.cuda.get_device_capability(device) >= (8, 0)
        return "bf16" if newer else "fp16"
    if device.type == "cpu":
        # what oneDNN itself asks; without these instructions bf16 is emulated
        has_bf16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        return "bf16" if has_bf16 else "fp32"
    return "bf16" if device.type == "xpu" else "fp32"
