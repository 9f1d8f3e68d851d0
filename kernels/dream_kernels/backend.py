"""Which code runs an op: its Triton kernel, or its reference in plain torch. Chosen once, by
DREAM_KERNELS, and logged once.

    auto       the kernel on CUDA and ROCm devices where Triton is installed, else the reference; in
               code that torch.compile compiles the reference of ops that say so
    triton     the kernel everywhere; on a CPU in Triton's interpreter, which TRITON_INTERPRET=1
               before the first import switches on
    reference  plain torch everywhere

On a CPU auto, the default, runs group_norm_silu and dropout in C++ of our own (`_cpp.py`), all else
as the reference; nothing is asked there, and nothing logged. float64 never runs a kernel: they
compute in float32. `with dream_kernels.backend("reference"):` chooses for
a block. torch.compile guards on the choice: no graph break, and
another choice compiles anew.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ._triton import HAS_TRITON, INTERPRETED

MODES = ("auto", "triton", "reference")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # what kernels load and store

log = logging.getLogger(__name__)


class BackendError(RuntimeError):
    """A backend that is unknown or cannot run here; its text is complete for the user, and tools
    print it alone.
    """

    is_for_users = True


def checked(wanted: str) -> str:
    if wanted not in MODES:
        raise BackendError(f"DREAM_KERNELS={wanted} is unknown; use one of {', '.join(MODES)}.")
    if wanted == "triton" and not HAS_TRITON:
        raise BackendError(
            "DREAM_KERNELS=triton needs Triton, which is not installed; install it or use auto."
        )
    return wanted


class Choice:
    """The mode in force. torch.compile guards on it."""

    mode = checked(os.environ.get("DREAM_KERNELS", "auto"))


choice = Choice()


@contextmanager
def backend(wanted: str) -> Iterator[None]:
    """Mode `wanted` inside, the earlier one after it. Raises BackendError for one that is not
    possible. Not per thread.
    """
    before, choice.mode = choice.mode, checked(wanted)
    try:
        yield
    finally:
        choice.mode = before


def runs_triton(x: Tensor, in_compiled: bool = True) -> bool:
    """Whether an op on `x` runs its kernel. in_compiled: whether mode auto takes it in compiled
    code too. Raises BackendError where DREAM_KERNELS=triton meets a device that has none.
    """
    if choice.mode == "reference" or x.dtype not in DTYPES:
        chosen = False
    elif choice.mode == "triton" and not (x.is_cuda or INTERPRETED):
        raise BackendError(
            f"DREAM_KERNELS=triton has no kernel for {x.device.type}; "
            "set TRITON_INTERPRET=1 (slow, for tests) or use auto."
        )
    else:
        fits = x.is_cuda and (in_compiled or not torch.compiler.is_compiling())
        chosen = HAS_TRITON and (fits or choice.mode == "triton")
    if not torch.compiler.is_compiling():
        _announce(x.device.type, chosen)
    return chosen


def wants_reference() -> bool:
    """Whether DREAM_KERNELS=reference: then no op takes a way of its own on a CPU either."""
    return choice.mode == "reference"


@functools.cache
def _announce(device: str, triton: bool) -> None:
    how = ("Triton's interpreter" if INTERPRETED else "Triton") if triton else "plain torch"
    log.info("dream_kernels on %s: %s", device, how)
