"""dream_kernels: the operations worth a kernel, with torch as the only need.

`reference.py` is the specification: every op in plain torch. An op with a kernel has a file of its
own name: kernel, launcher, torch.library op, and the way through them, which `backend.py` makes the
public function: that way, or the reference. Without Triton or a GPU the op is its reference, which
torch.compile fuses; on a CPU group_norm_silu, and dropout, which needs no kernel elsewhere, are C++
that is compiled when first used (`_cpp.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from . import reference
from ._dropout_cpu import dropout
from ._group_norm_triton import variants as norm_variants
from ._variant import Variant
from .backend import BackendError, backend, runs_triton
from .dream_loss import dream_loss
from .dream_loss import variants as loss_variants
from .dream_rectify import dream_rectify
from .dream_rectify import variants as rectify_variants
from .group_norm_silu import group_norm_silu
from .q_sample import q_sample
from .q_sample import variants as q_sample_variants
from .vq_lookup import variants as lookup_variants
from .vq_lookup import vq_lookup


class Op(NamedTuple):
    function: Any  # public
    reference: Callable
    variants: Callable[[], list[Variant]]  # of its kernels, for compilation ahead of time


OPS = {
    "dream_loss": Op(dream_loss, reference.dream_loss, loss_variants),
    "dream_rectify": Op(dream_rectify, reference.dream_rectify, rectify_variants),
    "group_norm_silu": Op(group_norm_silu, reference.group_norm_silu, norm_variants),
    "q_sample": Op(q_sample, reference.q_sample, q_sample_variants),
    "vq_lookup": Op(vq_lookup, reference.vq_lookup, lookup_variants),
}

__all__ = [
    "OPS",
    "BackendError",
    "Op",
    "Variant",
    "backend",
    "dropout",
    "runs_triton",
    *OPS,
]
