"""docs/design.md (Kernels) as functions: what every kernel's test holds it to."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dream_kernels

pytest.importorskip("triton")  # kernels are tested where there is a compiler for them

from dream_kernels import _aot, _cpp  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
# on the CPU kernels run in Triton's interpreter (tests/conftest.py)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {  # the same values, laid out otherwise
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "strided": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    # other values than the rest: those of the first sample
    "expanded": lambda x: x[:1].expand_as(x),
}


def needs_cpp(name: str) -> None:
    """Skips a test where there is no compiler for `name`.cpp; fails it where there is one and it
    compiles nothing.
    """
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("no C++ compiler")
    assert _cpp.library(name), "not compiled: see the log"


def flat(results: Tensor | Iterable[Tensor]) -> list[Tensor]:
    return (
        [results] if isinstance(results, Tensor) else [x for x in results if isinstance(x, Tensor)]
    )


def same(x: Tensor, y: Tensor) -> bool:
    """Equal bit for bit, NaN like NaN."""
    return torch.allclose(x, y, rtol=0, atol=0, equal_nan=True)


def ulp(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance of neighbours of `dtype` at x, float64."""
    _, exponent = torch.frexp(x.double().abs().clamp(min=torch.finfo(dtype).tiny))
    return torch.finfo(dtype).eps * torch.exp2(exponent.double() - 1)


def assert_as_exact_as_eager(got, exact, eager) -> None:
    """|got - exact| <= 2 max|eager - exact| + 1 ulp. got, eager: results in one dtype; exact: in
    float64 from the same inputs.
    """
    for ours, truth, theirs in zip(flat(got), flat(exact), flat(eager), strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert truth.dtype == torch.float64
        error = (ours.double() - truth).abs()
        allowed = 2 * (theirs.double() - truth).abs().max() + ulp(truth, ours.dtype)
        worst = (error - allowed).argmax()
        assert (error <= allowed).all(), (
            f"error {error.flatten()[worst]:.3e} at {truth.flatten()[worst]:.6g}; "
            f"allowed {allowed.flatten()[worst]:.3e}"
        )


def run_kernel(op: Callable, *inputs, **options):
    """op(*inputs) by its kernel; asserts that no input changed and that a second run gives the same
    bits.
    """
    before = [x.detach().clone() if isinstance(x, Tensor) else x for x in inputs]
    with dream_kernels.backend("triton"):
        first, second = op(*inputs, **options), op(*inputs, **options)
    assert all(same(x, y) for x, y in zip(before, inputs) if isinstance(x, Tensor)), (
        "an input was written to"
    )
    assert all(same(x, y) for x, y in zip(flat(first), flat(second))), "two runs differ"
    return first


def gradients(
    op: Callable, inputs: tuple, wanted: tuple[int, ...], grads: tuple[Tensor, ...], mode: str
) -> list[Tensor]:
    """Gradients of op's results, weighted with `grads`, in the inputs numbered `wanted`; asserts
    that two backwards agree.
    """
    leaves = [x.detach().requires_grad_() if i in wanted else x for i, x in enumerate(inputs)]
    with dream_kernels.backend(mode):
        results = flat(op(*leaves))
        asked = [leaves[i] for i in wanted]
        once, twice = (
            torch.autograd.grad(results, asked, grads, retain_graph=True) for _ in range(2)
        )
    assert all(torch.equal(x, y) for x, y in zip(once, twice)), "two backwards differ"
    return list(once)


def assert_compiles_whole(op: Callable, *inputs) -> None:
    """torch.compile(fullgraph=True) of the kernel's op: no graph break, the same numbers."""
    torch.compiler.reset()
    with dream_kernels.backend("triton"):
        whole = torch.compile(lambda *x: op(*x), fullgraph=True, backend="aot_eager")(*inputs)
        assert all(torch.equal(x, y) for x, y in zip(flat(whole), flat(op(*inputs))))


def without_interpreter() -> dict[str, str]:
    """Environment of a process that compiles kernels: under the interpreter none can be."""
    chosen = ("TRITON_INTERPRET", "DREAM_KERNELS")
    return {key: value for key, value in os.environ.items() if key not in chosen}


@functools.cache
def compiled_table() -> list[_aot.Row]:
    """Every variant of every op, compiled by tools/compile_kernels.py, once a session."""
    environment = without_interpreter()
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.csv"
        command = [sys.executable, str(ROOT / "tools/compile_kernels.py"), "--table", str(table)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return _aot.read(table)


def compiled_ahead(op: str) -> list[_aot.Row]:
    rows = [row for row in compiled_table() if row.op == op]
    assert rows, f"{op} has no variants"
    return rows


def assert_compiled_well(
    op: str, narrow: dict[str, int] | None = None, accesses: int = 128
) -> None:
    """No spills, loads and stores `accesses` bits wide, int64 offsets: every variant on every
    target.

    narrow: part of a variant's name -> bits of its stores, where a result has too few bytes for
    more.
    """
    for row in compiled_ahead(op):
        where = f"{row.variant} on {row.target}"
        assert row.spills == 0, f"{where}: {row.spills} spills"
        least = next(
            (bits for part, bits in (narrow or {}).items() if part in row.variant), accesses
        )
        assert row.load_bits >= accesses, f"{where}: loads of {row.load_bits} bits"
        assert row.store_bits >= least, f"{where}: stores of {row.store_bits} bits"
        assert row.narrow_offsets == 0, f"{where}: int32 offsets, wrong from 2^31 elements on"
