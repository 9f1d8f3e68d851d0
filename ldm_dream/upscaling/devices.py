"""Where a model runs and in which precision, by the names that a user gives."""

from __future__ import annotations

import torch

from ldm_dream.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class UpscaleError(UserError, ValueError):
    """An option of the upscaler that is not possible; its text is complete for the user."""


def device_named(name: str) -> torch.device:
    """auto (CUDA where there is one), cpu, cuda or cuda:N. Raises UpscaleError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise UpscaleError(f"device={name!r} is unknown; use auto, cpu, cuda or cuda:N.")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UpscaleError(
            f"device={name!r} is not there ({torch.cuda.device_count()} CUDA devices are); use auto or cpu."
        )
    return torch.device(name)


def dtype_named(name: str, device: torch.device) -> torch.dtype:
    """auto (fp32 on the CPU, else bf16 where the device has it, else fp16) or one of DTYPES. Raises
    UpscaleError.
    """
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere and later
        return torch.bfloat16 if has_bf16 else torch.float16
    if name not in DTYPES:
        raise UpscaleError(f"dtype={name!r} is unknown; use auto, {', '.join(DTYPES)}.")
    return DTYPES[name]
