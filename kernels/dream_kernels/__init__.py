"""dream_kernels: the operations worth a kernel, with torch as the only need.

`reference.py` is the specification: every op in plain torch. An op with a kernel has a file of its own name: kernel, launcher,
torch.library op, and the public function that chooses between op and reference (`backend.py`). Without Triton or a GPU the op is
its reference, which torch.compile fuses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from . import reference
from ._variant import Variant
from .backend import BackendError, backend, runs_triton
from .dream_rectify import dream_rectify, dream_rectify_input
from .dream_rectify import variants as rectify_variants
from .vq_lookup import variants as lookup_variants
from .vq_lookup import vq_lookup


class Op(NamedTuple):
    function: Callable  # public
    reference: Callable
    variants: Callable[[], list[Variant]] = list  # of its kernels, for compilation ahead of time; none: no kernel yet


OPS = {
    "dream_rectify": Op(dream_rectify, reference.dream_rectify, rectify_variants),
    "dream_rectify_input": Op(dream_rectify_input, reference.dream_rectify_input),  # variants: dream_rectify's
    "vq_lookup": Op(vq_lookup, reference.vq_lookup, lookup_variants),
}

__all__ = ["OPS", "BackendError", "Op", "Variant", "backend", "runs_triton", *OPS]
