"""Ops of dream_kernels beside their rivals: eager torch, torch.compile, and ours. One row a case
and provider.

Seconds are p20, p50 and p80 of alternating repetitions after warm-up and compilation; GB/s is the
least possible traffic by p50; peak MiB is what a call takes beyond its arguments. `ours` is the
kernel on a GPU. On a CPU an op is its reference, which the row `eager` measures, but for ops that
say otherwise. `kernel_cases.py` has the cases.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

import dream_kernels
from ldm_dream.errors import UserError

from .kernel_cases import CASES, DTYPES, Case
from .measure import peak_bytes, percentiles, seconds
from .record import Measured, append, complete


def providers(name: str, case: Case, inputs: tuple, device: str) -> dict[str, Callable]:
    ours = case.ours or dream_kernels.OPS[name].function
    eager = case.eager or dream_kernels.OPS[name].reference
    torch.compiler.reset()  # each case is compiled for its own sizes
    compiled = torch.compile(eager, dynamic=False)
    calls = {
        "eager": lambda: eager(*inputs),
        "compiled": lambda: compiled(*inputs),
        **case.others(*inputs),
    }
    if device != "cpu" or case.own_on_cpu:
        calls["ours"] = lambda: ours(*inputs)
    return calls


def with_backward(call: Callable, leaves: list[Tensor]) -> Callable:
    def both() -> None:
        y = call()
        torch.autograd.grad(y, leaves, torch.ones_like(y))

    return both


def measured(
    name: str, shape: tuple[int, ...], dtype: str, trained: bool, args: argparse.Namespace
) -> list[Measured]:
    """Rows of one case, one a provider."""
    case = CASES[name]
    inputs, moved = case.make(shape, DTYPES[dtype], args.device)
    leaves = [x.requires_grad_() for x in inputs[: case.gradients]] if trained else []
    calls = providers(name, case, inputs, args.device)
    if trained:
        calls = {key: with_backward(call, leaves) for key, call in calls.items()}
        moved += case.backward_passes * inputs[0].numel() * inputs[0].element_size()
    for call in calls.values():
        call(), call()
    peaks = {provider: peak_bytes(call, args.device) for provider, call in calls.items()}
    mode = "forward+backward" if trained else "forward"
    settings = {"mode": mode, "shape": list(shape), "dtype": dtype}
    rows = []
    for provider, times in seconds(calls, args.repetitions, args.device).items():
        metrics = percentiles(times)
        metrics |= {"gb_per_second": moved / metrics["p50"] / 1e9}
        metrics |= {"peak_mib": peaks[provider] / 2**20}
        rows.append(Measured(name, provider, settings, metrics))
    return rows


def main(args: argparse.Namespace) -> None:
    if unknown := set(args.op or CASES) - set(CASES):
        raise UserError(
            f"--op {' '.join(sorted(unknown))}: no such op; there are {', '.join(CASES)}."
        )
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but torch finds no CUDA device; use --device cpu.")
    times = "".join(f"{p + ' ms':>10}" for p in ("p20", "p50", "p80"))
    print(f"{'op':20} {'mode':16} {'shape':15} {'dtype':5} {'provider':22}{times} {'GB/s':>7} MiB")
    for name in args.op or CASES:
        case = CASES[name]
        for shape, dtype, trained in itertools.product(
            case.shapes, case.dtypes, (False, True) if case.gradients else (False,)
        ):
            rows = measured(name, shape, dtype, trained, args)
            append(args.json, complete(args, "kernels", rows))
            for _, provider, settings, found in rows:
                times = "".join(f"{found[p] * 1e3:10.3f}" for p in ("p20", "p50", "p80"))
                what = f"{name:20} {settings['mode']:16} {'x'.join(map(str, shape)):15} {dtype:5}"
                rest = f"{times} {found['gb_per_second']:7.1f} {found['peak_mib']:.1f}"
                print(f"{what} {provider:22}{rest}", flush=True)
