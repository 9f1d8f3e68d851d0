"""In which numbers a run computes: autocast, and what keeps half-precision gradients above zero."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor


@dataclass(frozen=True)
class Precision:
    """dtype: of `autocast()`, fp32 = none. The weights stay in fp32. scaler: of losses under fp16, whose
    small gradients would be 0; on a step whose gradients overflow the optimizer does nothing and the
    scale is halved, all of it on the device (Micikevicius et al., arXiv 1710.03740).
    """

    name: str  # fp32, bf16 or fp16
    dtype: torch.dtype
    autocast: Callable[[], torch.autocast]
    scaler: torch.amp.GradScaler

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint: scale, and steps since it last fell."""
        found = self.scaler.state_dict()
        kept = {name: found[name] for name in ("scale", "_growth_tracker") if name in found}
        return {name.lstrip("_"): torch.tensor(value).double() for name, value in kept.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        if state:
            found = {name: value.item() for name, value in state.items()}
            tracker = {"_growth_tracker": int(found.pop("growth_tracker"))}
            self.scaler.load_state_dict(self.scaler.state_dict() | found | tracker)


def precision_of(name: str, device: torch.device) -> Precision:
    """fp32, bf16, fp16, or auto: the fastest that this device has in hardware."""
    if name == "auto":
        name = fastest(device)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    lower = dtype != torch.float32
    cast = partial(torch.autocast, device.type, dtype if lower else torch.bfloat16, enabled=lower)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    return Precision(name, dtype, cast, scaler)


def fastest(device: torch.device) -> str:
    """bf16 on CUDA from Ampere on and on CPUs with AVX512-BF16 or AMX, fp16 on older CUDA devices,
    else fp32.
    """
    if device.type == "cuda":
        newer = torch.cuda.get_device_capability(device) >= (8, 0)
        return "bf16" if newer else "fp16"
    # what oneDNN itself asks; without these instructions bf16 is emulated
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if device.type == "cpu" and has_bf16 else "fp32"
