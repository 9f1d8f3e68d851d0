"""Triton where it is installed. Where it is not, a kernel stays a plain function that nobody calls:
every op is its reference.

Op files write `from ._triton import jit, tl` and need nothing else of Triton to be imported.
Annotations of kernels are strings (`from __future__ import annotations`), so `tl.constexpr` is
never looked up where `tl` is None.
"""

from __future__ import annotations

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

HAS_TRITON = triton is not None
# TRITON_INTERPRET=1 when this was imported: kernels run in numpy
INTERPRETED = HAS_TRITON and triton.knobs.runtime.interpret


def jit(fn):
    """triton.jit, or `fn` itself where there is no Triton."""
    return triton.jit(fn) if HAS_TRITON else fn
