"""Compiles every kernel for the whole numbers that Triton compiles anew for, where its interpreter
does not: 1, of which it makes a constant, and multiples of 16. A program: where kernels are
interpreted none can be compiled.
"""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from dream_kernels import OPS, Variant, _aot


def with_ones(variant: Variant, names: Sequence[str]) -> Variant:
    return variant._replace(
        name=f"{variant.kernel.__name__} with {', '.join(names)} = 1",
        signature=variant.signature | dict.fromkeys(names, "constexpr"),
        constexprs=variant.constexprs | dict.fromkeys(names, 1),
        multiples=tuple(name for name in variant.multiples if name not in names),
    )


def with_multiples(variant: Variant, names: Sequence[str]) -> Variant:
    name = f"{variant.kernel.__name__} with {', '.join(names) or 'none'} multiples of 16"
    return variant._replace(name=name, multiples=tuple(names))


def cases() -> list[Variant]:
    """Each kernel, in each layout that it has: one or all of its whole numbers 1, none or all of
    them multiples of 16.
    """
    variants = [variant for op in OPS.values() for variant in op.variants()]
    once = {(variant.kernel, variant.constexprs.get("LAST")): variant for variant in variants}
    found = []
    for variant in once.values():
        whole = [name for name, kind in variant.signature.items() if kind == "i32"]
        found += [with_ones(variant, names) for names in (whole, *([name] for name in whole))]
        found += [with_multiples(variant, names) for names in ((), whole)]
    return found


def failure(i: int) -> str | None:
    variant = cases()[i]
    try:
        _aot.compiled(variant, "sm_90")
    except Exception as error:  # whatever Triton says goes on to the test
        return f"{variant.name}: {error}"


if __name__ == "__main__":
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        failures = [text for text in pool.map(failure, range(len(cases()))) if text]
    raise SystemExit("\n".join(failures) or 0)
