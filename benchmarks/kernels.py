"""Ops of dream_kernels beside their rivals: eager torch, torch.compile of the reference, and ours. One row a case and provider.

A case makes an op's inputs from (shape, dtype, device). Seconds are p20, p50 and p80 of alternating repetitions after warm-up and
compilation; GB/s counts the least possible traffic. `ours` is the kernel on a GPU; on a CPU an op is its reference: no such row.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

import dream_kernels

from .record import append

SHAPES = ((4, 3, 128, 128), (4, 64, 128, 128))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def dream_rectify(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[tuple, int]:
    """-> arguments, tensors of `shape` that must be read or written."""
    tensors = torch.randn(3, *shape, device=device).to(dtype)
    return (*tensors, *torch.rand(2, shape[0], 1, 1, 1, device=device)), 5


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
}


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
    compiled = torch.compile(op.reference)
    calls = {"eager": lambda: op.reference(*args), "compiled": lambda: compiled(*args)}
    if device != "cpu":
        calls["ours"] = lambda: op.function(*args)
    return calls


def main(args: argparse.Namespace) -> None:
    wait = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    rows = []
    for name, case in CASES.items():
        for shape in SHAPES:
            for label, dtype in DTYPES.items():
                inputs, passes = case(shape, dtype, args.device)
                calls = providers(name, inputs, args.device)
                for call in calls.values():
                    call(), call()
                moved = passes * inputs[0].numel() * inputs[0].element_size()
                for provider, times in measure(calls, args.repetitions, wait).items():
                    p20, p50, p80 = (times[int(q * (len(times) - 1))] for q in (0.2, 0.5, 0.8))
                    row = {"op": name, "shape": list(shape), "dtype": label, "device": args.device, "provider": provider}
                    rows.append(row | {"p20": p20, "p50": p50, "p80": p80, "GB/s": moved / p50 / 1e9})
                    print(f"{name:24} {shape!s:20} {label:5} {provider:9} {p50 * 1e3:9.3f} ms  {moved / p50 / 1e9:7.1f} GB/s")
    append(args.json, rows)
