"""Triton where it is installed. Where it is not, a kernel stays a plain function that nobody calls:
every op is its reference.

Op files write `from ._triton import jit, tl` and need nothing else of Triton to be imported.
Annotations of kernels are strings (`from __future__ import annotations`), so `tl.constexpr` is never
looked up where `tl` is None. Types stop here: inside a kernel Triton has its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    import triton
    import triton.knobs  # so that type checkers know of it
    import triton.language as tl
except ImportError:
    triton: Any = None
    tl: Any = None

HAS_TRITON = triton is not None
# TRITON_INTERPRET=1 when this was imported: kernels run in numpy
INTERPRETED: bool = HAS_TRITON and triton.knobs.runtime.interpret


def jit(fn: Callable[..., Any]) -> Any:
    """triton.jit, or `fn` itself where there is no Triton."""
    return triton.jit(fn) if HAS_TRITON else fn
