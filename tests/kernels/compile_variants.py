"""python compile_variants.py OP TARGET...: compile an op's variants ahead of time, without a GPU; one JSON line each.

spills: registers of a thread kept in memory. load_bits, store_bits: widest access to global memory. narrow_offsets: vectors of
pointers made from int32 offsets.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dream_kernels import OPS, Variant

ACCESS = re.compile(r"(ld|st)\.(?:[\w:]+\.)*?global[\w.:]*?(?:\.v(\d))?\.[bfus](\d+)\b")
AMD_ACCESS = re.compile(r"(?:global|buffer|flat)_(load|store)_(?:dwordx(\d)|b(\d+)|dword\b)")


def target_of(name: str) -> GPUTarget:
    return GPUTarget("cuda", int(name[3:]), 32) if name.startswith("sm_") else GPUTarget("hip", name, 64)


def compile_variant(variant: Variant, target: str):
    source = ASTSource(variant.kernel, variant.signature, variant.constexprs, variant.attrs)
    return triton.compile(source, target_of(target), {"num_warps": variant.num_warps})


def nvidia(asm: dict) -> tuple[int, int, int]:
    """-> spilled bytes, widest load, widest store (bits)."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        dump = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    widest = {"ld": 0, "st": 0}
    for kind, count, bits in ACCESS.findall(asm["ptx"]):
        widest[kind] = max(widest[kind], int(count or 1) * int(bits))
    local = [int(n) for n in re.findall(r"(?:LOCAL|STACK):(\d+)", usage)]
    return sum(local), widest["ld"], widest["st"]


def amd(asm: dict) -> tuple[int, int, int]:
    text = asm["amdgcn"]
    widest = {"load": 0, "store": 0}
    for kind, words, bits in AMD_ACCESS.findall(text):
        widest[kind] = max(widest[kind], int(words) * 32 if words else int(bits or 32))
    return sum(int(n) for n in re.findall(r"\.[sv]gpr_spill_count:\s*(\d+)", text)), widest["load"], widest["store"]


def main() -> None:
    op, *targets = sys.argv[1:]
    for variant in OPS[op].variants():
        for target in targets:
            asm = compile_variant(variant, target).asm
            spills, load, store = (nvidia if "ptx" in asm else amd)(asm)
            narrow = len(re.findall(r"tt\.addptr .*tensor<[\dx]*xi32>", asm["ttir"]))
            row = {"name": variant.name, "target": target, "spills": spills, "load_bits": load, "store_bits": store}
            print(json.dumps(row | {"narrow_offsets": narrow}))  # noqa: T201


if __name__ == "__main__":
    main()
