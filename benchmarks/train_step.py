"""What one training step costs: ours with and without DREAM, and the official recipe with DREAM in
three forms, all in turns in one run. `step_variants.py` says what the variants are.

Each variant has a process of its own: ours keeps freed memory as training does
(`ldm_dream/heap.py`), the official one runs as Python finds it. The repetitions are spread
evenly over the steps of the process; in each all variants step once, one after the other, so that a
slow moment of the machine hits all. With loss.min_lam or
loss.min_shift, which skip the extra pass at some of them,
figures are means over the repetitions, otherwise medians.

Memory: most that tensors hold at once during a step; and on a CPU the high-water mark of resident
memory, which holds the heap's fragments too and differs from process to process. FLOP are those of
convolutions, matrix products and attention, counted by torch.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import resource
import statistics
import tempfile
from contextlib import ExitStack
from typing import Any

import torch

from ldm_dream.errors import UserError

from .conv_peak import conv_peak
from .measure import peak_bytes
from .record import Measured
from .step_profile import shares
from .step_variants import OFFICIAL, Step, Variant, make_step
from .tables import finish

DREAM = "ours DREAM"


def main(args: argparse.Namespace) -> None:
    if args.profile and args.device != "cpu":
        raise UserError("--profile times operations on the CPU; leave it out, or use --device cpu.")
    about = (args.config, tuple(args.set), args.device, args.compile)
    recipes = [("ours", True), ("ours", False)]
    if not args.ours_only:
        recipes += [(recipe, True) for recipe in OFFICIAL]
    variants = [Variant(recipe, dream, *about) for recipe, dream in recipes]
    metrics, settings = measure(variants, args.repetitions, args.profile)
    precision = settings[DREAM]["precision"]
    peak = conv_peak(args.device, torch.bfloat16 if precision == "bf16" else torch.float32)
    metrics[DREAM]["conv_flop_per_second"] = peak
    rows = []
    for name in metrics:
        asked = {"set": args.set, "compile": args.compile, "official": not args.ours_only}
        asked |= settings[name]
        rows.append(Measured(args.config, name, asked, metrics[name]))
    report(args.repetitions, rows)
    finish(args, "train-step", rows)


def report(repetitions: int, rows: list[Measured]) -> None:
    """Figures of single variants; the ratios between them are in the tables."""
    print(
        f"{rows[0].settings['average']} of {repetitions} repetitions, batch {rows[0].settings['batch']}"
    )
    print(
        f"{'':26}{'seconds':>9}{'first step':>12}{'tensors MiB':>13}{'resident MiB':>14}{'GFLOP':>8}"
    )
    for _, name, settings, metrics in rows:
        resident = f"{metrics['resident_mib']:.0f}" if "resident_mib" in metrics else ""
        times = f"{metrics['seconds']:9.3f}{metrics['first_step_seconds']:12.1f}"
        sizes = f"{metrics['tensors_mib']:13.0f}{resident:>14}{metrics['flop'] / 1e9:8.0f}"
        print(f"{name:26}{times}{sizes}  {settings['precision']}")
    if cold := rows[0].metrics.get("cold_start_seconds"):
        print(f"first step of ours without a cache of compiled code: {cold:.1f} s")


def measure(
    variants: list[Variant], repetitions: int, profile: bool
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """-> name of the variant -> its metrics, and the settings that its config makes."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as cache, ExitStack() as stack:
        # set before a process starts, and of this run alone: the first start is a cold one
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        cold = {}
        if variants[0].compile_ours:
            with spawn.Pool(1) as pool:
                cold["cold_start_seconds"] = pool.apply(begin, variants[:1])[0][
                    "first_step_seconds"
                ]
        workers = {variant.name: stack.enter_context(spawn.Pool(1)) for variant in variants}
        begun = [workers[variant.name].apply(begin, [variant]) for variant in variants]
        metrics = {variant.name: found for variant, (found, _) in zip(variants, begun)}
        settings = {variant.name: found for variant, (_, found) in zip(variants, begun)}
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        for repetition in range(repetitions):
            for name, worker in workers.items():
                seconds[name].append(worker.apply(again, [(repetition + 0.5) / repetitions]))
        for name, worker in workers.items():
            average = statistics.fmean if settings[name]["average"] == "mean" else statistics.median
            metrics[name] |= {"seconds": average(seconds[name]), "repetitions": seconds[name]}
            metrics[name] |= worker.apply(memory)
        metrics[DREAM] |= cold
        if profile:
            kinds = workers[DREAM].apply(profiled)
            metrics[DREAM] |= {f"share/{kind}": share for kind, share in kinds.items()}
    return metrics, settings


# ----------------------------------------------------------------- in the process of a variant

_step: Step  # of this process


def begin(variant: Variant) -> tuple[dict[str, Any], dict[str, Any]]:
    """Makes the step that `again`, `memory` and `profiled` repeat there, and takes it twice."""
    global _step
    _step = step = make_step(variant)
    flop = step.count_flop()
    if step.compiled:
        step.compile()
    first, _ = step(), step()
    parameters = sum(p.numel() for p in step.network.parameters())
    average = "mean" if step.run.loss.min_lam or step.run.loss.min_shift else "median"
    return (
        {"first_step_seconds": first, "flop": flop, "parameters": parameters},
        {"batch": step.run.train.batch_size, "precision": step.precision, "average": average},
    )


def again(place: float) -> float:
    return _step(place)


def memory() -> dict[str, float]:
    """MiB at most: resident memory over all steps so far (on a CPU), and tensors during one more
    step.
    """
    device = _step.device.type
    found = {}
    if device == "cpu":
        found["resident_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    kinds = (torch.Tensor, torch.nn.Parameter)  # the compiler leaves tensors without memory behind
    tensors = (x for x in gc.get_objects() if type(x) in kinds and x.device.type == device)
    storages = (x.untyped_storage() for x in tensors)
    held = {storage.data_ptr(): storage.nbytes() for storage in storages}
    return found | {"tensors_mib": (sum(held.values()) + peak_bytes(_step, device)) / 2**20}


def profiled() -> dict[str, float]:
    return shares(_step)
