"""What one training step costs: ours against the official recipe, standard against DREAM, all
alternating in one run.

Same network, weights, batch and threads. Official: `official.py` (eager, fp32, contiguous). Ours:
the step of `train.py` in the precision of the config, channels-last. The diffusion step itself:
terms through the decoder, the same for all variants, are off. Encoding is in the loop unless the
config caches latents; then the batch brings them, as in training. The autoencoder is built with
random weights where those of the config are not at hand: its time does not depend on them.

The repetitions are spread evenly over the steps of the process. With loss.min_lam, which spares the
extra pass at some of them, figures are means over the repetitions, otherwise medians.

Each variant has a process of its own, and they take turns: ours keeps freed memory as training does
(`ldm_dream/training/heap.py`), the official one runs as Python finds it. Memory: most that tensors hold at
once during a step; and on a CPU the high-water mark of resident memory, which holds the heap's
fragments too and differs from process to process by 5 %. FLOP are those of convolutions, matrix
products and attention, counted by torch; utilisation is against the best 3x3 convolution, forward
and backward, that this machine reaches in the same precision and layout in the same run.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from ldm_dream.config.files import load_config
from ldm_dream.config.run import DiffusionRun
from ldm_dream.data.pairs import Batch
from ldm_dream.denoiser import build_cond
from ldm_dream.errors import UserError
from ldm_dream.hub import HubError
from ldm_dream.model_folder import ModelError, load_autoencoder, resolve_autoencoder
from ldm_dream.networks import compile_blocks
from ldm_dream.networks.autoencoders import build_autoencoder
from ldm_dream.training.diffusion import DiffusionObjective
from ldm_dream.training.heap import keep_freed_memory
from ldm_dream.training.train import make_optimizer

from .measure import peak_bytes
from .official import Drawn, official_loss, plain
from .record import append
from .step_profile import shares

CONV_SHAPES = (
    (4, 64, 128),
    (4, 128, 64),
    (4, 256, 32),
)  # batch, channels, side of the 3x3 convolutions that give the peak


class Step:
    """One variant, ready to step: "official" or "ours", with or without DREAM."""

    def __init__(
        self,
        config: str,
        overrides: list[str],
        variant: str,
        dream: bool,
        device: str,
        compiled: bool,
    ):
        torch.manual_seed(0)
        run = load_config(
            config, [*overrides, f"loss.strength={float(dream)}", "loss.pixel=0", "loss.lpips=0"]
        )
        if not isinstance(run, DiffusionRun):
            raise UserError(f"{config}: train-step wants a config with task: diffusion.")
        self.official, self.dream, self.device = variant == "official", dream, torch.device(device)
        if self.official and run.prediction != "eps":
            raise UserError(
                f"{config}: the official recipe predicts eps, this config {run.prediction}; leave it out: --ours-only."
            )
        try:
            run = run.model_copy(update={"autoencoder": resolve_autoencoder(run.autoencoder)})
            autoencoder = load_autoencoder(run.autoencoder)
        except (ModelError, HubError):
            autoencoder = build_autoencoder(run.autoencoder).requires_grad_(False).eval()
        layout = torch.contiguous_format if self.official else torch.channels_last
        autoencoder.to(self.device, memory_format=layout)
        self.run = run
        self.objective = DiffusionObjective(run, autoencoder, None)
        self.objective.process.draw = self.draw
        self.place = 0.5
        self.network = self.objective.model
        self.network.to(self.device, memory_format=layout).train()
        if self.official:
            self.network = plain(self.network)
            self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-5)
        else:
            if self.device.type == "cpu":
                keep_freed_memory()
            self.optimizer = make_optimizer(run.train, list(self.network.parameters()))
        hr = torch.rand(run.train.batch_size, 3, run.data.patch, run.data.patch) * 2 - 1
        self.batch = Batch(hr, hr[..., :: run.scale, :: run.scale].contiguous()).to(
            self.device, layout
        )
        if run.data.cache_latents:
            z0, z_lr = self.objective.latents(self.batch)
            self.batch = Batch(self.batch.hr, self.batch.lr, z0=z0, z_lr=z_lr)
        with FlopCounterMode(display=False) as counter:
            self.loss().backward()
        self.optimizer.zero_grad(set_to_none=True)
        self.flop = counter.get_total_flops()
        self.compiled = compiled and not self.official
        if self.compiled:
            compile_blocks(self.network)

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """In place of the process's random steps: the one at `self.place` in [0,1) of the process,
        for the whole batch.
        """
        return torch.full(
            (count,), int(self.place * self.objective.process.num_timesteps), device=self.device
        )

    def __call__(self, place: float = 0.5) -> float:
        """-> seconds"""
        self.place = place
        start = time.perf_counter()
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def loss(self) -> torch.Tensor:
        generator = torch.Generator(self.device).manual_seed(0)
        if not self.official:
            with torch.autocast(
                self.device.type, torch.bfloat16, enabled=self.run.train.precision == "bf16"
            ):
                return self.objective.parts[0].loss(self.batch, 0, generator)[0]
        objective, process = self.objective, self.objective.process
        z0, z_lr = objective.latents(self.batch)
        t = process.draw(len(z0), generator)
        eps = torch.randn(z0.shape, generator=generator, device=z0.device)
        cond = build_cond(self.run, self.batch.lr, z_lr)

        def told(t: torch.Tensor) -> torch.Tensor:
            return process.model_t(t, self.network.sees_noise_level)

        batch = Drawn(z0, z_lr, cond, t, eps)
        return official_loss(self.network, process, told, batch, self.dream, self.run.loss.p)


def begin(*variant) -> dict:
    """In a process of its own: makes the step that `again` and `profiled` repeat there, and takes
    it twice; -> what it is.
    """
    global _step
    _step = step = Step(*variant)
    first = step()
    step()
    return {
        "precision": "fp32" if step.official else step.run.train.precision, "compiled": step.compiled,
        "first_step_seconds": first, "flop": step.flop, "batch": step.run.train.batch_size,
        "average": "mean" if step.run.loss.min_lam else "median",
        "parameters": sum(p.numel() for p in step.network.parameters()),
    }  # fmt: skip


def again(place: float) -> float:
    return _step(place)


def memory() -> dict[str, float]:
    """MiB at most: resident memory over all steps so far (on a CPU), and tensors during one more
    step.
    """
    device = _step.device.type
    found = (
        {}
        if device == "cuda"
        else {"resident_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    )
    storages = (
        x.untyped_storage()
        for x in gc.get_objects()
        if issubclass(type(x), torch.Tensor) and x.device.type == device
    )
    held = {storage.data_ptr(): storage.nbytes() for storage in storages}
    return found | {"tensors_mib": (sum(held.values()) + peak_bytes(_step, device)) / 2**20}


def profiled() -> dict[str, float]:
    return shares(_step)


def conv_peak(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of the best of CONV_SHAPES, forward and backward, channels-last."""
    best = 0.0
    for batch, channels, side in CONV_SHAPES:
        x = torch.randn(batch, channels, side, side, device=device, dtype=dtype).to(
            memory_format=torch.channels_last
        )
        w = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype).to(
            memory_format=torch.channels_last
        )
        x.requires_grad_(True)
        w.requires_grad_(True)
        for _ in range(5):
            start = time.perf_counter()
            y = F.conv2d(x, w, padding=1)
            torch.autograd.grad(y, (x, w), y.detach())
            if device == "cuda":
                torch.cuda.synchronize()
            best = max(
                best, 3 * 2 * batch * side**2 * 9 * channels**2 / (time.perf_counter() - start)
            )
    return best


def main(args) -> None:
    if args.profile and args.device != "cpu":
        raise UserError("--profile times operations on the CPU; leave it out, or use --device cpu.")
    names = [
        (who, dream)
        for who in (("ours",) if args.ours_only else ("ours", "official"))
        for dream in (True, False)
    ]
    variants = {f"{who} {'DREAM' if dream else 'standard'}": (args.config, args.set, who, dream, args.device, args.compile)
                for who, dream in names}  # fmt: skip
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as cache, ExitStack() as stack:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = (
            cache  # before a worker starts; of this run alone: the first start is a cold one
        )
        if args.compile:
            with spawn.Pool(1) as pool:
                cold = pool.apply(begin, variants["ours DREAM"])["first_step_seconds"]
        workers = {name: stack.enter_context(spawn.Pool(1)) for name in variants}
        rows = {name: workers[name].apply(begin, variant) for name, variant in variants.items()}
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for repetition in range(args.repetitions):
            for name, worker in workers.items():
                seconds[name].append(worker.apply(again, ((repetition + 0.5) / args.repetitions,)))
        for name, worker in workers.items():
            rows[name] |= worker.apply(memory)
        if args.profile:
            rows["ours DREAM"]["shares"] = workers["ours DREAM"].apply(profiled)

    ours = rows["ours DREAM"]
    if args.compile:
        ours["cold_start_seconds"] = cold
    peak = conv_peak(args.device, torch.bfloat16 if ours["precision"] == "bf16" else torch.float32)
    about = {
        "benchmark": "train-step",
        "config": args.config,
        "set": args.set,
        "device": args.device,
        "conv_peak": peak,
    }
    average = statistics.fmean if ours["average"] == "mean" else statistics.median
    for name, row in rows.items():
        typical = average(seconds[name])
        row |= about | {
            "variant": name,
            "seconds": typical,
            "samples_per_second": row["batch"] / typical,
        }

    def ratio(a: str, b: str) -> str:
        """Average of the repetitions' ratios in time, and the ratio of the tensors' memory."""
        time_ratio = average(x / y for x, y in zip(seconds[a], seconds[b]))
        return f"{time_ratio:6.3f} in time, {rows[a]['tensors_mib'] / rows[b]['tensors_mib']:.3f} in memory"

    size = f"{ours['parameters']:,} parameters, batch {ours['batch']}, {torch.get_num_threads()} threads"
    print(f"{args.config} {' '.join(args.set)}: {size}")
    print(f"{ours['average']} of {args.repetitions} alternating steps; the official recipe is fp32")
    print(
        f"{'':20}{'seconds':>9}{'samples/s':>11}{'tensors MiB':>13}{'resident MiB':>14}{'GFLOP':>8}{'of peak':>9}"
    )
    for name, row in rows.items():
        share = (
            f"{row['flop'] / row['seconds'] / peak:9.0%}" if name.startswith("ours") else ""
        )  # FLOP of a rectified step
        resident = f"{row['resident_mib']:.0f}" if "resident_mib" in row else ""
        figures = f"{row['seconds']:9.3f}{row['samples_per_second']:11.2f}{row['tensors_mib']:13.0f}{resident:>14}"
        print(f"{name:20}{figures}{row['flop'] / 1e9:8.0f}{share}")
    print(
        f"ours: {ours['precision']}{', compiled' if args.compile else ''}; peak of 3x3 convolutions {peak / 1e9:.0f} GFLOP/s"
    )
    start = f", without a cache {cold:.1f} s" if args.compile else ""
    print(f"first step of ours: {ours['first_step_seconds']:.1f} s{start}")
    pairs = [("ours DREAM", "ours standard"), ("official DREAM", "official standard"), ("ours DREAM", "official DREAM"),
             ("ours DREAM", "official standard"), ("ours standard", "official standard")]  # fmt: skip
    for a, b in pairs[: 1 if args.ours_only else None]:
        print(f"{a:15} / {b:18} {ratio(a, b)}")
    if args.profile:
        print("ours DREAM, shares of its wall time:")
        for kind, share in ours["shares"].items():
            print(f"{kind:28}{share:6.1%}")
    append(args.json, list(rows.values()))
