"""Triton where it is installed. Where it is not, a kernel stays a plain function that nobody calls:
every op is its reference.

Op files write `from ._triton import jit, run, tl` and need nothing else of Triton to be imported.
Annotations of kernels are strings (`from __future__ import annotations`), so `tl.constexpr` is never
looked up where `tl` is None. Types stop here: inside a kernel Triton has its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

try:
    import triton
    import triton.knobs  # so that type checkers know of it
    import triton.language as tl
except ImportError:
    triton: Any = None
    tl: Any = None

# factors of a sample, by their names in kernels
NUMBERS = ("a", "b", "s", "lam", "noise_std")
HAS_TRITON = triton is not None
# TRITON_INTERPRET=1 when this was imported: kernels run in numpy
INTERPRETED: bool = HAS_TRITON and triton.knobs.runtime.interpret


def jit(fn: Callable[..., Any]) -> Any:
    """triton.jit, or `fn` itself where there is no Triton. Of tensors named in NUMBERS the address
    may be any: they hold a number a sample, often one of a table.
    """
    if not HAS_TRITON:
        return fn
    names = [name for name in inspect.signature(fn).parameters if name in NUMBERS]
    return triton.jit(fn, do_not_specialize_on_alignment=names)


def run(kernel: Any, *programs: int) -> Callable[..., None]:
    """kernel[programs], which takes a tensor first, on that tensor's device: Triton launches on the
    current one, whatever device its tensors are on.
    """

    def launch(x: torch.Tensor, *arguments: Any, **options: Any) -> None:
        with torch.cuda.device_of(x):
            kernel[programs](x, *arguments, **options)

    return launch
