"""A run in memory, and one step of it: batches -> objective -> optimizers -> EMA.

Between two lines of the log a step of a diffusion model never waits for the device (a codebook asks
once a step which codes are dead): what is to be known of it is added up
there (`Means`, `Finite`), since reading a number from a GPU waits until it has done all that was
asked of it.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm_dream.config.autoencoder import AutoencoderConfig, PixelConfig
from ldm_dream.config.run import AutoencoderLossConfig, AutoencoderRun, DiffusionRun, Run
from ldm_dream.config.train import TrainConfig
from ldm_dream.data.loader import Data, Loader, workers_for
from ldm_dream.data.pairs import PairDataset
from ldm_dream.data.windows import degrades_on_device
from ldm_dream.dtypes import fastest
from ldm_dream.errors import UserError
from ldm_dream.heap import keep_freed_memory
from ldm_dream.model_config import find_model, read_run
from ldm_dream.model_folder import load_autoencoder, load_weights
from ldm_dream.networks import compile_blocks, recompute_blocks
from ldm_dream.networks.base import Network
from ldm_dream.networks.vqgan import VQGAN
from ldm_dream.scoring.lite0 import load_lite0
from ldm_dream.scoring.set_metrics import SetMetric, load_inception
from ldm_dream.training import distributed
from ldm_dream.training.autoencoder import AutoencoderObjective
from ldm_dream.training.diffusion import DiffusionObjective
from ldm_dream.training.latents import LatentDataset
from ldm_dream.training.memory import peak_gib
from ldm_dream.training.objective import Objective
from ldm_dream.training.optimizer import freeze, make_optimizer
from ldm_dream.training.perceptual import load_networks
from ldm_dream.training.precision import precision_of
from ldm_dream.training.start import Start

log = logging.getLogger(__name__)


class TrainingError(UserError, RuntimeError):
    """A run that must not go on; its text is complete for the user."""


class Trainer:
    """A run in memory: its data, its objective, one optimizer a part, the EMA of the model."""

    def __init__(self, start: Start, rank: distributed.Rank, run_dir: Path):
        run = start.run
        cfg, device = run.train, rank.device
        self.rank, self.device = rank, device
        self.layout = torch.channels_last if cfg.channels_last else torch.contiguous_format
        torch.manual_seed(run.seed)
        if device.type == "cpu":
            keep_freed_memory()
        self.perceptual = load_networks(run, device)
        self.distance = _distance_of(run)
        self.start, self.run, self.means = start, run, Means()
        self.micro_batches = cfg.accumulate * rank.world
        pairs = PairDataset(run.data, run.scale, run.seed)
        pairs.degrades_on_device = degrades_on_device(run.data, device.type)
        self.files = pairs.pictures
        self.pictures, self.counts = pairs.fingerprint(), pairs.counts()
        self.objective, self.data = self._build(run, pairs, run_dir)

        model = self.objective.model
        if cfg.init_from and not start.resumes:
            first = find_model(cfg.init_from)
            load_weights(model, first / "model.safetensors")
            _say_other_latents(run, first)
        self.objective.trained.to(device).to(memory_format=self.layout).train()
        freeze(model, cfg.freeze)
        if cfg.gradient_checkpointing and isinstance(model, Network):
            recompute_blocks(model)
        by_default = device.type == "cuda" and not run.data.scales
        if isinstance(model, Network) and (by_default if cfg.compile is None else cfg.compile):
            cache = str((run_dir / "compiled").resolve())  # a resumed run starts warm
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", cache)
            compile_blocks(model)
        self.objective.share_gradients()
        self.optimizers = [
            make_optimizer(cfg, [p for p in part.parameters if p.requires_grad])
            for part in self.objective.parts
        ]
        self.ema = [p.detach().clone() for p in model.parameters()]
        wanted = cfg.precision
        if wanted == "auto":  # the same in all processes, and after a resume on another machine
            wanted = start.precision or distributed.of_first_object(fastest(device))
        self.precision = precision_of(wanted, device)
        self.autocast = self.precision.autocast
        self.finite = {part.name: Finite(device) for part in self.objective.parts}
        self.settings = _set_up(device, cfg.tf32, fixed_sizes=not run.data.scales)

    def _build(self, run: Run, pairs: PairDataset, run_dir: Path) -> tuple[Objective, Data]:
        if not isinstance(run, DiffusionRun):
            return AutoencoderObjective(run, self.perceptual, self._teacher(run.loss)), pairs
        autoencoder = load_autoencoder(run.autoencoder, run_dir)
        autoencoder.to(self.device).to(memory_format=self.layout)
        objective = DiffusionObjective(run, autoencoder, self.perceptual)
        if run.data.cache_latents:
            with_hr = bool(run.loss.pixel or run.loss.perceptual)
            return objective, LatentDataset(pairs, autoencoder, run.data.cache_latents, with_hr)
        return objective, pairs

    def _teacher(self, cfg: AutoencoderLossConfig) -> VQGAN | None:
        if cfg.teacher is None:
            return None
        teacher = load_autoencoder(cfg.teacher)
        assert isinstance(teacher, VQGAN)
        return teacher.to(self.device).to(memory_format=self.layout)

    def describe(self) -> str:
        parameters = sum(p.numel() for p in self.objective.model.parameters())
        world = f"{self.rank.world} x {self.device.type}"
        kind = str(self.precision.dtype).removeprefix("torch.")
        facts = (f"{parameters:,} parameters", f"{len(self.data)} pictures", world, kind)
        return ", ".join((*facts, *self.settings))

    def step(self, step: int) -> dict[str, Tensor]:
        """Optimizer step number `step`, 0, 1, ..: every part once, then the EMA. -> what to log.

        A step has as many micro-batches as when the run was started, on however many processes. A
        process that has none left repeats one of the step with weight 0.
        """
        cfg, scalars = self.run.train, {}
        numbers, weights = self._share(step)
        with self.autocast():
            batches = [next(self.loader) for _ in numbers]
        scaler = self.precision.scaler
        for part, optimizer in zip(self.objective.parts, self.optimizers):
            if step < part.start:
                continue
            means: dict[str, Tensor] = {}
            for number, batch, weight in zip(numbers, batches, weights):
                last = number == numbers[-1]  # whose backward brings the gradients together
                torch.manual_seed(_seed(self.run.seed, number, 0))  # dropout
                generator = self._generator(number, 1)
                with nullcontext() if last else distributed.apart(part.module()):
                    with self.autocast():
                        loss, logged = part.loss(batch, step, generator)
                    scaler.scale(loss * weight).backward()
                for name, value in {f"loss/{part.name}": loss, **logged}.items():
                    share = weight * value.detach().float()
                    means[name] = means[name] + share if name in means else share
            scalars |= means
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(part.parameters, cfg.clip_grad or math.inf)
            seen = [means[f"loss/{part.name}"], norm]
            if scaler.is_enabled():  # an overflow is no failure: the scaler leaves that step out
                scalars[f"skipped/{part.name}"] = (~norm.isfinite()).float()
                norm = torch.where(norm.isfinite(), norm, 0)
                seen = seen[:1]
            scalars[f"grad_norm/{part.name}"] = norm
            self.finite[part.name].look(step, *seen)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(cfg, step)
            scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        scaler.update()
        scalars |= self.objective.after_step(self._generator(numbers[-1], 2))
        decay = min(cfg.ema, (2 + step) / (11 + step))  # short memory at the start
        weights = [p.detach() for p in self.objective.model.parameters()]
        torch._foreach_lerp_(self.ema, weights, 1 - decay)  # type: ignore  # no public name
        return scalars

    def measured(self) -> dict[str, float]:
        """Means since the last call, the share of that time for which data was waited for, and the most
        memory so far.
        """
        now, waited = time.perf_counter(), self.loader.waited
        share = (waited - self._waited) / max(now - self._measured, 1e-9)
        self._measured, self._waited = now, waited
        peak = peak_gib(self.device)
        memory = {} if peak is None else {"memory_gib": peak}
        return self.means.take() | {"data_wait": share} | memory

    def check_finite(self) -> None:
        """Raises TrainingError, in all processes, where a loss or gradient was not finite in one since
        the start; the weights are then worth nothing. Waits for the device, so it is called only
        where that is looked at.
        """
        if self.precision.scaler.is_enabled() and self.precision.scaler.get_scale() < 1:
            raise TrainingError(
                "fp16: gradients overflow at every scale of the loss, so no step counts; the last "
                "checkpoint is kept. Lower train.learning_rate or set train.precision=fp32."
            )
        for name, finite in self.finite.items():
            failed = [step for step in distributed.gathered(finite.failed()) if step is not None]
            if failed:
                step = min(failed)
                raise TrainingError(
                    f"step {step}: loss or gradient of part {name} is not finite; the last "
                    "checkpoint is kept. Lower train.learning_rate or set train.precision=fp32."
                )

    def _share(self, step: int) -> tuple[list[int], list[float]]:
        """Numbers and weights of the micro-batches of a step that are this process's."""
        total, world = self.micro_batches, self.rank.world
        places = range(self.rank.number, -(-total // world) * world, world)
        numbers = [step * total + place % total for place in places]
        return numbers, [world / total if place < total else 0.0 for place in places]

    def load_from(self, step: int) -> Loader:
        """From here on `step` is called for this step and the next ones, in their order."""
        cfg = self.run.train
        workers = workers_for(self.device) if cfg.workers is None else cfg.workers
        numbers = (number for at in itertools.count(step) for number in self._share(at)[0])
        pin = self.device.type == "cuda"
        self.loader = Loader(
            self.data, numbers, cfg.batch_size, self._place, workers, cfg.prefetch, pin
        )
        self._measured, self._waited = time.perf_counter(), 0.0
        return self.loader

    def _place(self, x: Tensor) -> Tensor:
        if self.device.type == "cuda" and not x.is_pinned():
            x = x.pin_memory()  # else the host would wait for the copy
        return x.to(self.device, memory_format=self.layout, non_blocking=True)

    def _generator(self, number: int, stream: int) -> torch.Generator:
        seed = _seed(self.run.seed, number, stream)
        return torch.Generator(self.device).manual_seed(seed)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model carries its EMA weights in eval mode, and gets its own weights and mode back."""
        model = self.objective.model
        kept = [p.detach().clone() for p in model.parameters()]
        _put(model, self.ema)
        model.eval()
        try:
            with self.autocast():
                yield
        finally:
            _put(model, kept)
            model.train()


class Means:
    """Running means since they were last taken. They are part of a checkpoint, so that a row after a
    resume is the mean over all of its steps.
    """

    def __init__(self):
        self.sums: dict[str, Tensor] = {}  # name -> float64 [sum, count]

    def add(self, scalars: dict[str, Tensor]) -> None:
        for name, value in scalars.items():
            value = value.detach().to(torch.float64)
            pair = torch.stack([value, torch.ones_like(value)])
            self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def state(self) -> dict[str, Tensor]:
        """Over all processes, each of which has to call: one exchange for all names."""
        if not self.sums:
            return {}
        names = sorted(self.sums)
        together = distributed.mean(torch.stack([self.sums[name] for name in names]))
        return dict(zip(names, together.unbind()))

    def take(self) -> dict[str, float]:
        found = self.state()
        self.sums = {}
        if not found:
            return {}
        rows = torch.stack(list(found.values())).tolist()
        return {name: total / count for name, (total, count) in zip(found, rows)}


class Finite:
    """Remembers on the device the first step at which a number was not finite."""

    def __init__(self, device: torch.device):
        self.first = torch.full((), -1, dtype=torch.int64, device=device)

    def look(self, step: int, *numbers: Tensor) -> None:
        fine = torch.stack([number.detach().double().isfinite().all() for number in numbers]).all()
        self.first = torch.where(~fine & (self.first < 0), step, self.first)

    def failed(self) -> int | None:
        """That step; None if there was none. Waits for the device."""
        first = int(self.first)
        return None if first < 0 else first


def learning_rate(cfg: TrainConfig, step: int) -> float:
    """Linear warm-up, then constant or cosine to `learning_rate_end` at the last step."""
    if step < cfg.warmup_steps:
        return cfg.learning_rate * (step + 1) / cfg.warmup_steps
    if cfg.decay == "none":
        return cfg.learning_rate
    done = (step - cfg.warmup_steps) / max(1, cfg.steps - cfg.warmup_steps)
    return cfg.learning_rate_end + (cfg.learning_rate - cfg.learning_rate_end) * 0.5 * (
        1 + math.cos(math.pi * min(1.0, done))
    )


@torch.no_grad()
def _put(model: nn.Module, values: list[Tensor]) -> None:
    for p, value in zip(model.parameters(), values):
        p.copy_(value)


def _say_other_latents(run: Run, first: Path) -> None:
    """Weights know the latents of the autoencoder that they were trained with."""
    theirs = read_run(first)
    if not isinstance(run, DiffusionRun) or not isinstance(theirs, DiffusionRun):
        return
    mine, other = run.autoencoder, theirs.autoencoder
    digests = [getattr(cfg, "sha256", None) for cfg in (mine, other)]
    if all(digests):
        same = digests[0] == digests[1] or _older_latents(mine, str(digests[1]))
    else:
        same = mine.pretrained == other.pretrained
    if mine.kind != other.kind or not same:
        log.warning(
            "train.init_from=%s knows the latents of another autoencoder (%s) than this run has "
            "(%s); train.init_from=null starts from nothing.",
            run.train.init_from, other.pretrained or other.kind, mine.pretrained or mine.kind,
        )  # fmt: skip


def _older_latents(cfg: AutoencoderConfig, digest: str) -> bool:
    """Whether this autoencoder has or may have the latents of the one with that digest: that taught
    it, or, where its encoder was frozen, one that it does not know.
    """
    if isinstance(cfg, PixelConfig) or not cfg.pretrained:
        return False
    made = read_run(find_model(cfg.pretrained))
    assert isinstance(made, AutoencoderRun)
    teacher = made.loss.teacher
    return made.keeps_latents if teacher is None else teacher.sha256 == digest


def _set_up(device: torch.device, tf32: bool, fixed_sizes: bool) -> list[str]:
    """How a GPU computes in this process; -> what was chosen, in words."""
    if device.type != "cuda":
        return []
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = fixed_sizes
    return ["TF32"] * tf32 + ["cudnn.benchmark"] * fixed_sizes


def _seed(*numbers: int) -> int:
    """One 63-bit seed from several small numbers."""
    mixed = 0x9E3779B97F4A7C15
    for number in numbers:
        mixed = ((mixed ^ number) * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
        mixed ^= mixed >> 31
    return mixed % 2**63


def _distance_of(run: Run) -> SetMetric | None:
    """`train.val_distance` of a run. Raises MetricUnavailable where its package or weights are not
    here.
    """
    if run.train.val_distance == "fid":
        return load_inception(run.inception_weights)
    return load_lite0().set_metric() if run.train.val_distance else None
