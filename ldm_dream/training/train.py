"""Training, the file to read first: data -> objective -> optimizer -> EMA -> log, validation,
model, checkpoint.

Every random choice is a function of the seed and of a micro-batch's number in the run, so there is
no random state to keep: a run that was killed and started again by the same command ends with the
same weights, bit for bit on CPU in fp32, as one that was never stopped, and n processes under
torchrun train as one process that accumulates n micro-batches. `metrics.jsonl` is the log.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm_dream.config.files import dump_config
from ldm_dream.config.run import DiffusionRun, Run, TrainConfig
from ldm_dream.data.loader import Data, Loader, workers_for
from ldm_dream.data.pairs import PairDataset
from ldm_dream.data.validation import validation_pairs
from ldm_dream.errors import UserError
from ldm_dream.heap import keep_freed_memory
from ldm_dream.model_config import find_model
from ldm_dream.model_folder import load_autoencoder, load_weights, save_model
from ldm_dream.networks import compile_blocks
from ldm_dream.networks.base import Network
from ldm_dream.scoring.metrics import load_lpips
from ldm_dream.training import distributed
from ldm_dream.training.autoencoder import AutoencoderObjective
from ldm_dream.training.card import card
from ldm_dream.training.checkpoint import (
    Checkpoint,
    flatten_optimizer,
    latest_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from ldm_dream.training.diffusion import DiffusionObjective
from ldm_dream.training.latents import LatentDataset
from ldm_dream.training.log import Log
from ldm_dream.training.objective import Objective
from ldm_dream.training.run_folder import claim
from ldm_dream.training.signals import Stop
from ldm_dream.training.start import Start, open_run
from ldm_dream.training.validation import validate


class TrainingError(UserError, RuntimeError):
    """A run that must not go on (non-finite loss, a folder of another run); its text is complete
    for the user.
    """


def train(run: Run, run_dir: Path) -> int:
    """Train `run` to its last step in `run_dir`, resuming from the newest whole checkpoint there;
    -> exit status: 0, or 128 + the number of the signal that ended it.

    Writes `run_dir/model` and `run_dir/model-best`. Raises UserError.
    """
    with distributed.start() as rank, Stop() as stop:
        if not rank.is_first:
            return _train(run, run_dir, rank, stop, None)
        with claim(run_dir) as said:
            return _train(run, run_dir, rank, stop, said)


def _train(run: Run, run_dir: Path, rank: distributed.Rank, stop: Stop, said: str | None) -> int:
    cfg, found, is_first = run.train, latest_checkpoint(run_dir), rank.is_first
    start = open_run(run, run_dir, rank, found)
    trainer = Trainer(start, rank, run_dir)
    val = []
    if is_first:
        val = validation_pairs(run.data, run.scale, cfg.val_images, cfg.val_crop)
    step = trainer.resume(found, run_dir) if found else 0
    if found and is_first:
        start.record(run_dir, step)
    log = Log(run_dir, step, cfg.steps, is_first)
    for line in (said, *start.said, f"{trainer.describe()}, from step {step}"):
        if line:
            log.line(line)
    with closing(trainer.load_from(step)):
        step = _loop(trainer, step, run_dir, val, log, stop)
    log.bar.close()
    if step < cfg.steps:
        log.line(f"stopped at step {step}, checkpoint written; the same command goes on from there")
    else:
        log.line(f"done: {run_dir / 'model'}")
    return stop.status


def _loop(trainer: Trainer, step: int, run_dir: Path, val: list, log: Log, stop: Stop) -> int:
    """From `step` to the last one, or to a signal; -> the step it ended at."""
    cfg, rank = trainer.run.train, trainer.rank
    saved, stopped = step, False
    while True:
        if rank.is_first:
            trainer.report(run_dir, step, val, log)
        due = step % cfg.save_every == 0 or step >= cfg.steps or stopped
        if due and step != saved:
            trainer.save(run_dir, step)
            saved = step
        if step >= cfg.steps or stopped:
            break
        trainer.means.add(trainer.step(step))
        step += 1
        log.bar.update()
        if step % cfg.log_every == 0 or step == cfg.steps:
            log(step, trainer.means.take() | {"learning_rate": learning_rate(cfg, step - 1)})
        stopped = stop.signal is not None
        if rank.world > 1:
            stopped = distributed.anywhere(torch.tensor(stopped)).item()
    return step


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
        self.lpips = load_lpips(run.lpips_weights).to(device) if run.lpips_weights else None
        self.start, self.run, self.means = start, run, Means()
        self.micro_batches = cfg.accumulate * rank.world
        pairs = PairDataset(run.data, run.scale, run.seed)
        self.pictures, self.counts = pairs.fingerprint(), pairs.counts()
        self.objective, self.data = self._build(run, pairs, run_dir)

        model = self.objective.model
        if cfg.init_from and not start.resumes:
            load_weights(model, find_model(cfg.init_from) / "model.safetensors")
        self.objective.trained.to(device).to(memory_format=self.layout).train()
        _freeze(model, cfg.freeze)
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

    def _build(self, run: Run, pairs: PairDataset, run_dir: Path) -> tuple[Objective, Data]:
        if not isinstance(run, DiffusionRun):
            return AutoencoderObjective(run, self.lpips), pairs
        autoencoder = load_autoencoder(run.autoencoder, run_dir)
        autoencoder.to(self.device).to(memory_format=self.layout)
        objective = DiffusionObjective(run, autoencoder, self.lpips)
        if run.data.cache_latents:
            with_hr = bool(run.loss.pixel or run.loss.lpips)
            return objective, LatentDataset(pairs, autoencoder, run.data.cache_latents, with_hr)
        return objective, pairs

    def describe(self) -> str:
        parameters = sum(p.numel() for p in self.objective.model.parameters())
        world = f"{self.rank.world} x {self.device.type}"
        return f"{parameters:,} parameters, {len(self.data)} pictures, {world}"

    def step(self, step: int) -> dict[str, Tensor]:
        """Optimizer step number `step`, 0, 1, ..: every part once, then the EMA. -> what to log.

        A step has as many micro-batches as when the run was started, on however many processes. A
        process that has none left repeats one of the step with weight 0.
        """
        cfg, scalars = self.run.train, {}
        numbers, weights = self._share(step)
        with self._autocast():
            batches = [next(self.loader) for _ in numbers]
        for part, optimizer in zip(self.objective.parts, self.optimizers):
            if step < part.start:
                continue
            means: dict[str, Tensor] = {}
            for number, batch, weight in zip(numbers, batches, weights):
                torch.manual_seed(_seed(self.run.seed, number, 0))  # dropout
                generator = self._generator(number, 1)
                with self._autocast():
                    loss, logged = part.loss(batch, step, generator)
                (loss * weight).backward()
                for name, value in {f"loss/{part.name}": loss, **logged}.items():
                    share = weight * value.detach().float()
                    means[name] = means[name] + share if name in means else share
            scalars |= means
            norm = nn.utils.clip_grad_norm_(part.parameters, cfg.clip_grad or math.inf)
            if not (torch.isfinite(scalars[f"loss/{part.name}"]) and torch.isfinite(norm)):
                raise TrainingError(
                    f"step {step}: loss {scalars[f'loss/{part.name}'].item()}, gradient norm "
                    f"{norm.item()} of part {part.name} is not finite; the last checkpoint is kept. "
                    "Lower train.learning_rate or set train.precision=fp32."
                )
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(cfg, step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            scalars[f"grad_norm/{part.name}"] = norm
        scalars |= self.objective.after_step(self._generator(numbers[-1], 2))
        decay = min(cfg.ema, (2 + step) / (11 + step))  # short memory at the start
        weights = [p.detach() for p in self.objective.model.parameters()]
        torch._foreach_lerp_(self.ema, weights, 1 - decay)  # type: ignore  # no public name
        return scalars

    def _share(self, step: int) -> tuple[list[int], list[float]]:
        """Numbers and weights of the micro-batches of a step that are this process's."""
        total, world = self.micro_batches, self.rank.world
        places = range(self.rank.number, -(-total // world) * world, world)
        numbers = [step * total + place % total for place in places]
        return numbers, [world / total if place < total else 0.0 for place in places]

    def load_from(self, step: int) -> Loader:
        """From here on `step` is called for this step and the next ones, in their order."""
        cfg, local = self.run.train, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        workers = workers_for(self.device, local) if cfg.workers is None else cfg.workers
        numbers = (number for at in itertools.count(step) for number in self._share(at)[0])
        pin = self.device.type == "cuda"
        self.loader = Loader(
            self.data, numbers, cfg.batch_size, self._place, workers, cfg.prefetch, pin
        )
        return self.loader

    def _place(self, x: Tensor) -> Tensor:
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
            with self._autocast():
                yield
        finally:
            _put(model, kept)
            model.train()

    def report(self, run_dir: Path, step: int, val: list, log: Log) -> None:
        """At a step that is due and was not reported: validate, and write the model with the averaged
        weights.
        """
        cfg = self.run.train
        last = step >= cfg.steps
        if val and step and (step % cfg.val_every == 0 or last) and step not in log.validations:
            grid = run_dir / "samples" / f"step-{step:08d}.png"
            with self.averaged():
                log(step, validate(self.objective, val, self.lpips, grid, self.run.seed))
                self.release(run_dir / "model", step, log)
                since = self.start.comparable_from
                rows = {at: row for at, row in log.validations.items() if at > since}
                if best_step(rows, cfg.best) == step:
                    self.release(run_dir / "model-best", step, log)
        elif (last and not (run_dir / "model" / "config.yaml").is_file()) or (
            not val and step and (step % cfg.save_every == 0 or last)
        ):
            with self.averaged():
                self.release(run_dir / "model", step, log)

    def release(self, folder: Path, step: int, log: Log) -> None:
        """Write a model folder with the model's present weights."""
        facts = self.start.facts(folder.resolve().parent.name, step, self.counts, log.validations)
        save_model(
            folder,
            self.run,
            self.objective.model.state_dict(),
            card(self.run, facts),
            self.start.autoencoder,
        )

    def save(self, run_dir: Path, step: int) -> None:
        """Called in every process; the first one writes."""
        tensors = {f"mean.{name}": pair for name, pair in self.means.state().items()}
        if not self.rank.is_first:
            return
        tensors |= {f"trained.{k}": v for k, v in self.objective.trained.state_dict().items()}
        tensors |= {f"ema.{i}": v for i, v in enumerate(self.ema)}
        for part, optimizer in zip(self.objective.parts, self.optimizers):
            tensors |= flatten_optimizer(part.name, optimizer)
        meta = {
            "config": dump_config(self.run),
            "micro_batches": self.micro_batches,
            "pictures": self.pictures,
            "counts": self.counts,
            "history": self.start.history,
        }
        save_checkpoint(run_dir, step, tensors, meta, self.run.train.keep_checkpoints)

    def resume(self, found: Checkpoint, run_dir: Path) -> int:
        """-> its step. Raises TrainingError for one that lacks something or is of other data."""
        self._refuse_other_pictures(found.meta.get("pictures", self.pictures), run_dir)
        self.micro_batches = found.meta.get("micro_batches", self.micro_batches)
        mark, trained = "trained.", self.objective.trained
        state = {k.removeprefix(mark): v for k, v in found.tensors.items() if k.startswith(mark)}
        own = trained.state_dict()
        if state.keys() != own.keys() or any(state[k].shape != own[k].shape for k in own):
            raise TrainingError(
                f"{run_dir} holds a run of another model; "
                "give another --run-dir or the config it was started with."
            )
        parts = [part.name for part in self.objective.parts if part.start < found.step]
        wanted = [f"ema.{i}" for i in range(len(self.ema))] + [f"optimizer.{p}." for p in parts]
        for name in wanted:
            if not any(key.startswith(name) for key in found.tensors):
                raise TrainingError(
                    f"{run_dir}: the checkpoint of step {found.step} lacks {name.rstrip('.')}; "
                    "it is no whole checkpoint, put another back."
                )
        trained.load_state_dict(state)
        for i, average in enumerate(self.ema):
            average.copy_(found.tensors[f"ema.{i}"])
        for part, optimizer in zip(self.objective.parts, self.optimizers):
            restore_optimizer(part.name, optimizer, found.tensors)
        sums = {k: v for k, v in found.tensors.items() if k.startswith("mean.")}
        self.means.sums = {k.removeprefix("mean."): v.to(self.device) for k, v in sums.items()}
        return found.step

    def _refuse_other_pictures(self, then: dict[str, Any], run_dir: Path) -> None:
        if then != self.pictures:
            raise TrainingError(
                f"data.train: holds {self.pictures['count']} pictures that are not the "
                f"{then['count']} by name and size that the run in {run_dir} was started with; put "
                "those back, or give another --run-dir with train.init_from."
            )

    def _autocast(self) -> torch.autocast:
        lower = self.run.train.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=lower)


class Means:
    """Running means since they were last taken. They are part of a checkpoint, so that a row after a
    resume is the mean over all of its steps.
    """

    def __init__(self):
        self.sums: dict[str, Tensor] = {}  # name -> float64 [sum, count]

    def add(self, scalars: dict[str, Tensor]) -> None:
        for name, value in scalars.items():
            one = torch.ones((), dtype=torch.float64, device=value.device)
            pair = torch.stack([value.detach().to(torch.float64), one])
            self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def state(self) -> dict[str, Tensor]:
        """Over all processes, each of which has to call."""
        return {name: distributed.mean(pair) for name, pair in sorted(self.sums.items())}

    def take(self) -> dict[str, float]:
        means = {name: (pair[0] / pair[1]).item() for name, pair in self.state().items()}
        self.sums = {}
        return means


def make_optimizer(cfg: TrainConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Adam or AdamW, all parameters in one fused pass."""
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[cfg.optimizer]
    return kind(
        parameters, lr=cfg.learning_rate, betas=cfg.betas, weight_decay=cfg.weight_decay, fused=True
    )


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


def best_step(validations: dict[int, dict[str, float]], figure: str) -> int | None:
    """The first step with the best value of `figure`, of which higher is better but for LPIPS."""
    sign = -1 if figure == "lpips" else 1
    values = {step: row.get(f"val/{figure}") for step, row in validations.items()}
    known = {step: sign * value for step, value in values.items() if value is not None}
    return max(known, key=lambda step: (known[step], -step)) if known else None


@torch.no_grad()
def _put(model: nn.Module, values: list[Tensor]) -> None:
    for p, value in zip(model.parameters(), values):
        p.copy_(value)


def _freeze(model: nn.Module, prefixes: tuple[str, ...]) -> None:
    names = [name for name, _ in model.named_parameters()]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            tops = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
            raise TrainingError(
                f"train.freeze: no parameter begins with {prefix!r}; they begin with {tops}."
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(prefixes))


def _seed(*numbers: int) -> int:
    """One 63-bit seed from several small numbers."""
    mixed = 0x9E3779B97F4A7C15
    for number in numbers:
        mixed = ((mixed ^ number) * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
        mixed ^= mixed >> 31
    return mixed % 2**63
