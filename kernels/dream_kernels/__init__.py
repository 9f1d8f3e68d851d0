"""dream_kernels: the operations worth a kernel, with torch as the only need.

`reference.py` is the specification: every op in plain torch. An op with a kernel has a file of its
own name: kernel, launcher, torch.library op, and the public function that chooses between op and
reference (`backend.py`). Without Triton or a GPU the op is its reference, which torch.compile
fuses; on a CPU group_norm_silu, and dropout, which needs no kernel elsewhere, are C++ that is
compiled when first used (`_cpp.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from . import reference
from ._dropout_cpu import dropout
from ._noise import noise_key
from ._variant import Variant
from .backend import BackendError, backend, runs_triton
from .dream_l1 import dream_l1, dream_l1_grad
from .dream_l1 import variants as l1_variants
from .dream_rectify import dream_rectify, dream_rectify_input
from .dream_rectify import variants as rectify_variants
from .group_norm_silu import group_norm_silu
from .group_norm_silu import variants as norm_variants
from .q_sample import q_sample, q_sample_eps
from .q_sample import variants as q_sample_variants
from .sampler_step import sampler_step
from .sampler_step import variants as sampler_step_variants
from .vq_lookup import variants as lookup_variants
from .vq_lookup import vq_lookup


class Op(NamedTuple):
    function: Callable  # public
    reference: Callable
    variants: Callable[[], list[Variant]] = (
        list  # of its kernels, for compilation ahead of time; none: no kernel yet
    )


OPS = {
    "dream_rectify": Op(dream_rectify, reference.dream_rectify, rectify_variants),
    "dream_rectify_input": Op(
        dream_rectify_input, reference.dream_rectify_input
    ),  # variants: dream_rectify's
    "dream_l1": Op(dream_l1, reference.dream_l1, l1_variants),
    "dream_l1_grad": Op(dream_l1_grad, reference.dream_l1_grad),  # variants: dream_l1's
    "group_norm_silu": Op(group_norm_silu, reference.group_norm_silu, norm_variants),
    "q_sample": Op(q_sample, reference.q_sample, q_sample_variants),
    "q_sample_eps": Op(q_sample_eps, reference.q_sample_eps),  # variants: q_sample's
    "sampler_step": Op(sampler_step, reference.sampler_step, sampler_step_variants),
    "vq_lookup": Op(vq_lookup, reference.vq_lookup, lookup_variants),
}

__all__ = [
    "OPS",
    "BackendError",
    "Op",
    "Variant",
    "backend",
    "dropout",
    "noise_key",
    "runs_triton",
    *OPS,
]
