"""dream_kernels: the operations worth a kernel, with torch as the only need.

`reference.py` is the specification: every op in plain torch. Triton backends come op by op, each in a file of its own behind
the same name; until one exists, or where there is no GPU, the op is its reference. Nothing here needs triton to import or run.
"""

from __future__ import annotations

from . import reference

OPS = {"dream_rectify": reference.dream_rectify, "vq_lookup": reference.vq_lookup}  # name -> reference

dream_rectify = reference.dream_rectify
vq_lookup = reference.vq_lookup

__all__ = ["OPS", "dream_rectify", "vq_lookup"]
