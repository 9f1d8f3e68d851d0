"""What of a kernel is compiled ahead of time, as data: each op has `variants()`, and OPS leads to
them all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ._triton import NUMBERS

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "i8": 1}  # Triton's name of a dtype -> bytes a value


class Variant(NamedTuple):
    """One specialisation of one kernel, as a launch on large contiguous tensors would choose it.

    Bytes count what a launch moves for one element of the tensor it works on.
    """

    name: str  # "dream_rectify/fp32"
    kernel: Any  # triton JITFunction
    signature: dict[str, str]  # every argument in order -> "*bf16", "i32", ..., "constexpr"
    constexprs: dict[str, Any]
    num_warps: int
    bytes_moved: float  # an element, by this kernel
    bytes_least: float  # an element: every input read once, every result written once
    multiples: tuple[str, ...] = ()  # whole numbers that are multiples of 16, as most pointers are
    # an element, float32, where they and not the bytes decide the time; a comparison or choice is
    # two
    operations: float = 0

    @property
    def attrs(self) -> dict[tuple[int], list[list]]:
        """Divisibility by 16, by the argument's place."""
        names = enumerate(self.signature.items())
        return {
            (i,): [["tt.divisibility", 16]]
            for i, (name, kind) in names
            if (kind[0] == "*" and name not in NUMBERS) or name in self.multiples
        }
