"""Where a model runs and in which precision, by the names that a user gives, and how pictures and
weights get there.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

from ldm_dream.errors import UserError
from ldm_dream.numbers import sent

Module = TypeVar("Module", bound=nn.Module)

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


def on_device(x: Tensor, device: torch.device) -> Tensor:
    """In the layout of the networks."""
    return sent(x, device).contiguous(memory_format=torch.channels_last)


def placed(module: Module, device: torch.device, dtype: torch.dtype) -> Module:
    """`module` in eval mode, moved to `device`; for a `dtype` of 16 bits a copy of it, of which
    convolutions and linear layers hold their weights in that type.

    Autocast would cast these at every call, to the same bits. A subclass of such a layer computes
    in its own way (`LastConv2d`) or with its weights (`EqualConv2d`), and keeps its own type.
    """
    if dtype != torch.float32:
        module = deepcopy(module)
        for layer in module.modules():
            if type(layer) in (nn.Conv1d, nn.Conv2d, nn.Linear):
                layer.to(dtype)
    return module.eval().to(device).to(memory_format=torch.channels_last)
