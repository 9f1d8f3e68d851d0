"""Where a training step's time goes: the wall time of its operations on the CPU, by kind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from torch.profiler import ProfilerActivity, profile

# kind -> what names of its operations hold; the outermost operation that fits takes the time of all
# it calls
KINDS = {
    "optimizer": ("Optimizer.step",),
    "convolution": ("aten::conv2d", "convolution"),
    "matrix product, attention": (
        "aten::linear",
        "aten::addmm",
        "aten::mm",
        "aten::bmm",
        "scaled_dot_product",
    ),
    "group norm + SiLU": ("group_norm",),
    "dropout": ("dropout",),
    "cast, copy": ("aten::to", "aten::copy_", "aten::clone", "aten::contiguous"),
}
REST = "everything else"


def shares(step: Callable[[], float], repetitions: int = 3) -> dict[str, float]:
    """Kind -> share of the step's wall time; what no operation covers (Python, waiting) is in
    "everything else".
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        whole = sum(step() for _ in range(repetitions))
    events = profiled.events() or ()
    _add([event for event in events if event.cpu_parent is None], seconds)
    seconds[REST] = whole - sum(seconds.values())
    return {kind: seconds[kind] / whole for kind in (*KINDS, REST)}


def _add(events: Iterable, seconds: defaultdict[str, float]) -> None:
    for event in events:
        kind = next(
            (kind for kind, parts in KINDS.items() if any(part in event.name for part in parts)),
            None,
        )
        if kind is None:
            _add(event.cpu_children, seconds)
        else:
            seconds[kind] += event.cpu_time_total * 1e-6
