"""What compilers make of every kernel, ahead of time and without a GPU: a table of rows that is
kept and compared.

One row a variant (`_variant.py`) and target. NVIDIA: ptxas' cubin as cuobjdump reads it, accesses
from the PTX; AMD: metadata and instructions of the assembly. All of it comes with Triton.
Microseconds are a prediction, no measurement.
"""

from __future__ import annotations

import csv
import multiprocessing
import re
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple, get_type_hints

import triton
import triton.knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from . import OPS, Variant
from .backend import BackendError

ELEMENTS = 2**24  # of the tensor that predictions are for: 16 features of 64 x 128 x 128


class Card(NamedTuple):
    """By its data sheet."""

    name: str
    bandwidth: float  # bytes a second
    operations: float  # float32 operations a second, without tensor cores


TARGETS = {
    "sm_80": Card("A100 SXM", 2.04e12, 19.5e12),
    "sm_90": Card("H100 SXM", 3.35e12, 67e12),
    "sm_100": Card("B200", 8.0e12, 80e12),
    "gfx942": Card("MI300X", 5.3e12, 163e12),
}


class Row(NamedTuple):
    op: str  # row of OPS
    variant: str
    target: str
    registers: int  # a thread
    spills: int  # bytes (NVIDIA) or registers (AMD) of a thread kept in memory
    shared: int  # bytes a program
    load_bits: int  # widest access to global memory
    store_bits: int
    narrow_offsets: int  # vectors of pointers made from int32 offsets: wrong from 2^31 elements on
    bytes_moved: float  # an element
    bytes_least: float
    # for ELEMENTS: bytes by the card's bandwidth, or operations by its peak if that takes longer
    predicted_us: float


def report(ops: Iterable[str] = tuple(OPS), workers: int = 2) -> list[Row]:
    """Every variant of `ops` for every target. Raises BackendError in a process with
    TRITON_INTERPRET, which cannot compile.
    """
    if triton.knobs.runtime.interpret:
        raise BackendError("TRITON_INTERPRET=1 leaves nothing to compile; unset it.")
    jobs = [
        (op, i, target) for op in ops for i in range(len(OPS[op].variants())) for target in TARGETS
    ]
    fork = multiprocessing.get_context("fork")  # nobody imports torch again
    with ProcessPoolExecutor(workers, fork) as pool:
        return list(pool.map(_row, jobs))


def compiled(variant: Variant, target: str) -> CompiledKernel:
    """By Triton, for a card that need not be there."""
    source = ASTSource(variant.kernel, variant.signature, variant.constexprs, variant.attrs)
    nvidia = target.startswith("sm_")
    card = GPUTarget("cuda", int(target[3:]), 32) if nvidia else GPUTarget("hip", target, 64)
    return triton.compile(source, card, {"num_warps": variant.num_warps})


def _row(job: tuple[str, int, str]) -> Row:
    op, i, target = job
    variant = OPS[op].variants()[i]
    made = compiled(variant, target)
    registers, spills, loads, stores = (_nvidia if "cubin" in made.asm else _amd)(made.asm)
    narrow = len(re.findall(r"tt\.addptr .*tensor<[\dx]*xi32>", made.asm["ttir"]))
    accesses = max(loads, default=0), max(stores, default=0)
    moved, least = round(float(variant.bytes_moved), 3), round(float(variant.bytes_least), 3)
    microseconds = round(predicted(variant, TARGETS[target]) * 1e6, 1)
    return Row(
        op, variant.name, target, registers, spills, made.metadata.shared, *accesses, narrow, moved,
        least, microseconds,
    )  # fmt: skip


def predicted(variant: Variant, card: Card) -> float:
    return ELEMENTS * max(
        variant.bytes_moved / card.bandwidth, variant.operations / card.operations
    )


def _nvidia(asm: dict) -> tuple[int, int, list[int], list[int]]:
    """-> registers, spilled bytes, bits of each load and of each store."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        dump = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    found: dict[str, list[int]] = {"ld": [], "st": []}
    for kind, count, bits in re.findall(
        r"(ld|st)\.(?:[\w:]+\.)*?global[\w.:]*?(?:\.v(\d))?\.[bfus](\d+)\b", asm["ptx"]
    ):
        found[kind].append(int(count or 1) * int(bits))
    (registers,) = re.findall(r"REG:(\d+)", usage)
    spills = sum(int(n) for n in re.findall(r"(?:LOCAL|STACK):(\d+)", usage))
    return int(registers), spills, found["ld"], found["st"]


def _amd(asm: dict) -> tuple[int, int, list[int], list[int]]:
    text, found = asm["amdgcn"], {"load": [], "store": []}
    for kind, words, short in re.findall(
        r"(?:global|buffer|flat)_(load|store)_(?:dwordx(\d)|dword\b|u?(short|byte))", text
    ):
        found[kind].append({"short": 16, "byte": 8}.get(short, 32 * int(words or 1)))
    (registers,) = re.findall(r"\.vgpr_count:\s*(\d+)", text)
    spills = sum(int(n) for n in re.findall(r"\.[sv]gpr_spill_count:\s*(\d+)", text))
    return int(registers), spills, found["load"], found["store"]


# column of a row -> 1 if more of it is worse, -1 if less
SIGNS = {"spills": 1, "load_bits": -1, "store_bits": -1, "narrow_offsets": 1, "bytes_moved": 1}


def worse(rows: list[Row], kept: list[Row]) -> list[str]:
    """What `rows` lose against the kept rows of the same ops, one sentence each. More registers are
    no loss while none spills.
    """
    ops = {row.op for row in rows}
    now, before = (
        {(r.variant, r.target): r for r in table if r.op in ops} for table in (rows, kept)
    )
    found = [f"{' on '.join(key)}: not in the table" for key in now.keys() - before.keys()]
    found += [f"{' on '.join(key)}: only in the table" for key in before.keys() - now.keys()]
    for key in now.keys() & before.keys():
        for column, sign in SIGNS.items():
            new, old = getattr(now[key], column), getattr(before[key], column)
            if sign * new > sign * old:
                found.append(f"{' on '.join(key)}: {column} {new}, was {old}")
    return sorted(found)


def read(path: Path) -> list[Row]:
    """A table that `write` wrote. Raises BackendError for any other file."""
    kinds = get_type_hints(Row)
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [
                Row(**{name: kinds[name](value) for name, value in line.items()})
                for line in csv.DictReader(file)
            ]
    except (KeyError, TypeError, ValueError):
        raise BackendError(
            f"{path}: is no table of compiled kernels and is left as it is; name another file."
        ) from None


def write(path: Path, rows: list[Row]) -> None:
    """As comma-separated text, one line a row."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(Row._fields)
        lines.writerows(rows)
