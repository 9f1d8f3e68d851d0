"""Ops of dream_kernels beside their rivals: eager torch, torch.compile of the reference, and ours. One row a case and provider.

A case makes an op's inputs from (shape, dtype, device). Seconds are p20, p50 and p80 of alternating repetitions after warm-up and
compilation; GB/s counts the least possible traffic. `ours` is the kernel on a GPU; on a CPU an op is its reference, without a row
of its own, but for OWN_ON_CPU. Ops in TRAINED are also timed with the backward. `eager` is the reference or what EAGER names.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import dream_kernels

from .record import append

SHAPES = ((4, 3, 128, 128), (4, 64, 128, 128))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def dream_rectify(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[tuple, int]:
    """-> arguments, tensors of `shape` that must be read or written."""
    tensors = torch.randn(3, *shape, device=device).to(dtype)
    return (*tensors, *torch.rand(2, shape[0], 1, 1, 1, device=device)), 5


def group_norm_silu(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[tuple, int]:
    x = torch.randn(shape, device=device).to(dtype, memory_format=torch.channels_last)
    weight, bias = torch.randn(2, shape[1], device=device)
    return (x, weight, bias, math.gcd(32, shape[1]), 1e-5), 2


def torch_group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    return F.silu(F.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype), eps))


def dream_l1_grad(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[tuple, int]:
    tensors = torch.randn(3, *shape, device=device).to(dtype)
    return (*tensors, torch.rand(shape[0], 1, 1, 1, device=device)), 4


def q_sample(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[tuple, int]:
    tensors = torch.randn(3, *shape, device=device).to(dtype)
    return (*tensors, *torch.rand(3, shape[0], 1, 1, 1, device=device)), 4


def sampler_step(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[tuple, int]:
    args, _ = q_sample(shape, dtype, device)
    key = dream_kernels.noise_key(torch.arange(shape[0], device=device))
    return (*args[:2], key, *args[3:], 1.0), 3


CASES: dict[str, Callable] = {
    "dream_rectify": dream_rectify,
    "dream_l1_grad": dream_l1_grad,
    "q_sample": q_sample,
    "sampler_step": sampler_step,
    "group_norm_silu": group_norm_silu,
}
SHAPES_OF = {"group_norm_silu": ((4, 32, 128, 128), (4, 64, 64, 64), (4, 128, 32, 32), (4, 512, 8, 8))}  # of SR3, inner 32
EAGER: dict[str, Callable] = {"group_norm_silu": torch_group_norm_silu}
TRAINED = OWN_ON_CPU = {"group_norm_silu"}


def measure(calls: dict[str, Callable], repetitions: int, wait: Callable) -> dict[str, list[float]]:
    """Seconds of each call, alternating so that a slow moment of the machine hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repetitions):
        for name, call in calls.items():
            wait()
            start = time.perf_counter()
            call()
            wait()
            seconds[name].append(time.perf_counter() - start)
    return {name: sorted(times) for name, times in seconds.items()}


def providers(name: str, args: tuple, device: str) -> dict[str, Callable]:
    op = dream_kernels.OPS[name]
    eager = EAGER.get(name, op.reference)
    compiled = torch.compile(eager)
    calls = {"eager": lambda: eager(*args), "compiled": lambda: compiled(*args)}
    if device != "cpu" or name in OWN_ON_CPU:
        calls["ours"] = lambda: op.function(*args)
    return calls


def with_backward(call: Callable, leaves: list[Tensor]) -> Callable:
    def both() -> None:
        y = call()
        torch.autograd.grad(y, leaves, torch.ones_like(y))

    return both


def main(args: argparse.Namespace) -> None:
    wait = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    rows = []
    for name, case in CASES.items():
        for shape in SHAPES_OF.get(name, SHAPES):
            for (label, dtype), trained in itertools.product(DTYPES.items(), (False, True) if name in TRAINED else (False,)):
                inputs, passes = case(shape, dtype, args.device)
                leaves = [x.requires_grad_() for x in inputs if isinstance(x, Tensor)] if trained else []
                calls = providers(name, inputs, args.device)
                calls = {key: with_backward(call, leaves) if trained else call for key, call in calls.items()}
                for call in calls.values():
                    call(), call()
                moved = (passes + 3 * trained) * inputs[0].numel() * inputs[0].element_size()  # backward: dy, x, dx
                mode = "forward+backward" if trained else "forward"
                row = {"op": name, "mode": mode, "shape": list(shape), "dtype": label, "device": args.device}
                for provider, times in measure(calls, args.repetitions, wait).items():
                    p20, p50, p80 = (times[int(q * (len(times) - 1))] for q in (0.2, 0.5, 0.8))
                    speed = moved / p50 / 1e9
                    rows.append(row | {"provider": provider, "p20": p20, "p50": p50, "p80": p80, "GB/s": speed})
                    print(f"{name:16} {mode:16} {shape!s:19} {label:5} {provider:9} {p50 * 1e3:9.3f} ms  {speed:7.1f} GB/s")
    append(args.json, rows)
