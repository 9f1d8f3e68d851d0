"""Seconds and peak memory of calls that stand beside each other.

CUDA: events around one call, after a write to more memory than the second-level cache holds; that
write also runs long enough to hide the launch. CPU: a clock around one call, with whatever the call
before it left in the caches. Memory is counted by torch's allocators, over what the arguments hold
already: a library's own scratch is not seen.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import profile

FLUSH_BYTES = 2**28  # an H100's second-level cache holds 50 MiB, an MI300X's last 256


def seconds(calls: dict[str, Callable], repetitions: int, device: str) -> dict[str, list[float]]:
    """-> sorted seconds of each call, alternating, so that a slow moment of the machine hits all.
    Warm the calls up before.
    """
    once = _cuda_clock() if device == "cuda" else _cpu_clock
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repetitions):
        for name, call in calls.items():
            found[name].append(once(call))
    return {name: sorted(times) for name, times in found.items()}


def percentiles(times: list[float]) -> dict[str, float]:
    """Sorted seconds -> p20, p50, p80."""
    return {f"p{q}": times[round(q / 100 * (len(times) - 1))] for q in (20, 50, 80)}


def peak_bytes(call: Callable, device: str) -> int:
    """Most memory at once that a call takes beyond what is held before it. The call should have run
    before.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports its own starts otherwise
    with profile(profile_memory=True) as recorded:
        call()
    profiler: Any = recorded.profiler  # its results have no public types
    events, moments = list(profiler.kineto_results.experimental_event_tree()), []
    while events:
        event = events.pop()
        events += event.children
        kind, fields = event.typed
        if kind.name == "Allocation" and fields.device.type == "cpu":
            moments.append((event.start_time_ns, fields.total_allocated, fields.alloc_size))
    if not moments:
        return 0
    moments.sort()
    _, total, size = moments[0]
    return max(total for _, total, _ in moments) - (total - size)


def _cpu_clock(call: Callable) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _cuda_clock() -> Callable[[Callable], float]:
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def once(call: Callable) -> float:
        flush.zero_()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3

    return once
