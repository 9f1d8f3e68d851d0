"""Seconds, samples/s and peak memory of one training step, standard against DREAM, alternating in one run.

The diffusion step itself: terms through the decoder, which cost both variants the same, are off. Encoding is in the loop unless
the config caches latents; then the batch brings them, as in training. Peak memory is that of a process of its own for each
variant: high-water mark of resident memory on the CPU, of allocations on CUDA.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time

import torch

from ldm_dream.checkpoint import load_autoencoder, resolve_autoencoder
from ldm_dream.config import DiffusionRun, load_config
from ldm_dream.data.pairs import Batch
from ldm_dream.objectives import DiffusionObjective

from .record import append

VARIANTS = {"standard": 0.0, "dream": 1.0}


class Step:
    """One variant, ready to step."""

    def __init__(self, config: str, variant: str, device: str):
        torch.manual_seed(0)
        run = load_config(config, [f"loss.strength={VARIANTS[variant]}", "loss.pixel=0", "loss.lpips=0"])
        if not isinstance(run, DiffusionRun):
            raise SystemExit(f"{config}: train-step wants a config with task: diffusion.")
        run = run.model_copy(update={"autoencoder": resolve_autoencoder(run.autoencoder)})
        self.run, self.device = run, torch.device(device)
        layout = {"device": self.device, "memory_format": torch.channels_last}
        self.objective = DiffusionObjective(run, load_autoencoder(run.autoencoder).to(**layout), None)
        self.objective.model.to(**layout).train()
        self.optimizer = torch.optim.AdamW(self.objective.model.parameters(), lr=1e-5)
        hr = torch.rand(run.train.batch_size, 3, run.data.patch, run.data.patch) * 2 - 1
        lr = hr[..., :: run.scale, :: run.scale]
        self.batch = Batch(hr, lr).to(self.device, torch.channels_last)
        if run.data.cache_latents:
            z0, z_lr = self.objective.latents(self.batch)
            self.batch = Batch(self.batch.hr, self.batch.lr, z0=z0, z_lr=z_lr)

    def __call__(self) -> float:
        """-> seconds"""
        start = time.perf_counter()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.run.train.precision == "bf16"):
            loss, _ = self.objective.parts[0].loss(self.batch, 0, torch.Generator(self.device).manual_seed(0))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def peak_memory(config: str, variant: str, device: str) -> float:
    """MiB, measured in the calling process: call it in a fresh one."""
    step = Step(config, variant, device)
    step()
    step()
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(args) -> None:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = {v: pool.apply(peak_memory, (args.config, v, args.device)) for v in VARIANTS}
    steps = {v: Step(args.config, v, args.device) for v in VARIANTS}
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {v: [] for v in VARIANTS}
    for _ in range(args.repetitions):
        for v, step in steps.items():
            seconds[v].append(step())
    size = steps["dream"].run.train.batch_size
    rows = [
        {"benchmark": "train-step", "config": args.config, "variant": v, "seconds": statistics.median(seconds[v]),
         "samples_per_second": size / statistics.median(seconds[v]), "peak_mib": memory[v], "device": args.device}
        for v in VARIANTS
    ]  # fmt: skip
    print(f"{args.config}: batch {size}, {args.repetitions} alternating steps, median; threads {torch.get_num_threads()}")
    print(f"{'':10}{'seconds':>10}{'samples/s':>12}{'peak MiB':>10}")
    for row in rows:
        print(f"{row['variant']:10}{row['seconds']:10.3f}{row['samples_per_second']:12.2f}{row['peak_mib']:10.0f}")
    ratios = [rows[1][key] / rows[0][key] for key in ("seconds", "samples_per_second", "peak_mib")]
    print(f"{'ratio':10}{ratios[0]:10.3f}{ratios[1]:12.3f}{ratios[2]:10.3f}")
    append(args.json, rows)
