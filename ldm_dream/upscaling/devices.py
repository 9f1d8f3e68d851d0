"""Where a model runs and in which precision, by the names that a user gives, and how a model
gets there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn

from ldm_dream.dtypes import DTYPES, fastest
from ldm_dream.errors import UserError

Module = TypeVar("Module", bound=nn.Module)

Device = str | torch.device
Dtype = str | torch.dtype

# kinds of accelerators, the preferred one first, and how many are there
KINDS: dict[str, Callable[[], int]] = {
    "cuda": lambda: torch.cuda.device_count(),
    "xpu": lambda: torch.xpu.device_count(),
    "mps": lambda: int(torch.backends.mps.is_available()),
}
# what mps and the host say instead of raising torch.OutOfMemoryError
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class UpscaleError(UserError, ValueError):
    """An option of the upscaler that is not possible; its text is complete for the user."""


class TooLittleMemory(UpscaleError):
    """A picture that the device has no memory for, however small its tiles."""


def device_named(wanted: Device | torch.dtype) -> torch.device:
    """auto (the first of KINDS that is there, else cpu), cpu, or a kind with or without :N. Raises
    UpscaleError.
    """
    if wanted == "auto":
        return torch.device(next((kind for kind, count in KINDS.items() if count()), "cpu"))
    kind, _, index = (name := str(wanted)).partition(":")
    if kind not in ("cpu", *KINDS) or (index and not index.isdigit()):
        raise UpscaleError(
            f"device={name!r} is unknown; use auto, cpu, {', '.join(KINDS)}, or one with :N."
        )
    if kind in KINDS and int(index or 0) >= (there := KINDS[kind]()):
        raise UpscaleError(
            f"device={name!r} is not there ({there} of that kind are); use auto or cpu."
        )
    return torch.device(name)


def dtype_named(wanted: Dtype, device: torch.device) -> torch.dtype:
    """auto (the fastest of the device), one of DTYPES, or the type of torch. Raises UpscaleError."""
    if wanted == "auto":
        return DTYPES[fastest(device)]
    if isinstance(wanted, torch.dtype) and wanted in DTYPES.values():
        return wanted
    if wanted not in DTYPES:
        raise UpscaleError(f"dtype={str(wanted)!r} is unknown; use auto, {', '.join(DTYPES)}.")
    return DTYPES[str(wanted)]


@contextmanager
def memory_errors() -> Iterator[None]:
    """Where memory runs out in the body, raises torch.OutOfMemoryError, as CUDA does by itself."""
    try:
        yield
    except RuntimeError as error:
        if any(words in str(error) for words in OUT_OF_MEMORY):
            raise torch.OutOfMemoryError(str(error)) from error
        raise


def placed(module: Module, device: torch.device, dtype: torch.dtype) -> Module:
    """`module` in eval mode, moved to `device`; for a `dtype` of 16 bits a copy of it, of which
    convolutions and linear layers hold their weights in that type.

    Autocast would cast these at every call, to the same bits. A subclass of such a layer computes
    in its own way (`LastConv2d`) or with its weights (`EqualConv2d`), and keeps its own type.
    """
    if dtype != torch.float32:
        module = deepcopy(module.cpu())  # the original rests on the host
        for layer in module.modules():
            if type(layer) in (nn.Conv1d, nn.Conv2d, nn.Linear):
                layer.to(dtype)
    return module.eval().to(device).to(memory_format=torch.channels_last)
