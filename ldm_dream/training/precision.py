"""In which numbers a run computes: autocast, and what keeps half-precision gradients above zero."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ldm_dream.dtypes import DTYPES, fastest


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
    dtype = DTYPES[name]
    lower = dtype != torch.float32
    cast = partial(torch.autocast, device.type, dtype if lower else torch.bfloat16, enabled=lower)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    return Precision(name, dtype, cast, scaler)
