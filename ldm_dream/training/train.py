"""Training, the file to read first: data -> objective -> optimizer -> EMA -> log, validation,
checkpoint.

Every random choice is a function of the seed and of a micro-batch's number in the run, so there is
no random state to keep: a run that was killed and started again by the same command ends with the
same weights, bit for bit on CPU in fp32, as one that was never stopped, and n processes under
torchrun train as one process that accumulates n micro-batches. `metrics.jsonl` is the log.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ldm_dream import __version__
from ldm_dream.config.files import dump_config
from ldm_dream.config.run import DiffusionRun, Run, TrainConfig
from ldm_dream.data.pairs import PairDataset, validation_pairs
from ldm_dream.errors import UserError
from ldm_dream.model_folder import (
    find_model,
    load_autoencoder,
    load_weights,
    resolve_autoencoder,
    save_model,
)
from ldm_dream.networks import compile_blocks
from ldm_dream.networks.base import Network
from ldm_dream.scoring.metrics import load_lpips
from ldm_dream.training import distributed
from ldm_dream.training.autoencoder import AutoencoderObjective
from ldm_dream.training.checkpoint import (
    flatten_optimizer,
    latest_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from ldm_dream.training.diffusion import DiffusionObjective
from ldm_dream.training.heap import keep_freed_memory
from ldm_dream.training.latents import LatentDataset
from ldm_dream.training.objective import Data, Objective
from ldm_dream.training.validation import validate


class TrainingError(UserError, RuntimeError):
    """A run that must not go on (non-finite loss, a folder of another run); its text is complete
    for the user.
    """


def train(run: Run, run_dir: Path) -> None:
    """Train `run` to its last step in `run_dir`, resuming from the newest whole checkpoint there.
    Writes `run_dir/model`.
    """
    with distributed.start() as rank:
        cfg, is_first = run.train, rank.is_first
        val = []
        if is_first:
            val = validation_pairs(run.data, run.scale, cfg.val_images, cfg.val_crop)
        trainer = Trainer(run, rank, run_dir)
        step = trainer.resume(run_dir)
        log = Log(run_dir, step, cfg.steps, is_first)
        log.line(f"{trainer.describe()}, from step {step}")
        while step < cfg.steps:
            scalars = trainer.step(step)
            step += 1
            log.bar.update()
            if step % cfg.log_every == 0 or step == cfg.steps:
                means = {k: distributed.mean(v.detach()).item() for k, v in scalars.items()}
                log(step, means | {"learning_rate": learning_rate(cfg, step - 1)})
            if not is_first:
                continue
            if val and (step % cfg.val_every == 0 or step == cfg.steps):
                grid = run_dir / "samples" / f"step-{step:08d}.png"
                with trainer.averaged():
                    log(step, validate(trainer.objective, val, trainer.lpips, grid, run.seed))
            if step % cfg.save_every == 0 or step == cfg.steps:
                trainer.save(run_dir, step)
        if is_first:
            with trainer.averaged():
                release(trainer.run, run_dir / "model", trainer.objective.model)
        log.bar.close()
        log.line(f"done: {run_dir / 'model'}")


class Trainer:
    """A run in memory: its data, its objective, one optimizer a part, the EMA of the model."""

    def __init__(self, run: Run, rank: distributed.Rank, run_dir: Path):
        cfg, device = run.train, rank.device
        self.rank, self.device = rank, device
        self.layout = torch.channels_last if cfg.channels_last else torch.contiguous_format
        torch.manual_seed(run.seed)
        if device.type == "cpu":
            keep_freed_memory()
        self.lpips = load_lpips(run.lpips_weights).to(device) if run.lpips_weights else None
        self.run, self.objective, self.data = self._build(run)

        model = self.objective.model
        if cfg.init_from:
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

    def _build(self, run: Run) -> tuple[Run, Objective, Data]:
        if not isinstance(run, DiffusionRun):
            data = PairDataset(run.data, run.scale, run.seed)
            return run, AutoencoderObjective(run, self.lpips), data
        run = run.model_copy(update={"autoencoder": resolve_autoencoder(run.autoencoder)})
        data = PairDataset(run.data, run.scale, run.seed)
        autoencoder = load_autoencoder(run.autoencoder)
        autoencoder.to(self.device).to(memory_format=self.layout)
        objective = DiffusionObjective(run, autoencoder, self.lpips)
        if run.data.cache_latents:
            return run, objective, LatentDataset(data, autoencoder, run.data.cache_latents)
        return run, objective, data

    def describe(self) -> str:
        parameters = sum(p.numel() for p in self.objective.model.parameters())
        world = f"{self.rank.world} x {self.device.type}"
        return f"{parameters:,} parameters, {len(self.data)} pictures, {world}"

    def step(self, step: int) -> dict[str, Tensor]:
        """Optimizer step number `step`, 0, 1, ..: every part once, then the EMA. -> what to log."""
        cfg, scalars = self.run.train, {}
        first = step * cfg.accumulate
        numbers = [  # of this process's micro-batches in the run
            (first + i) * self.rank.world + self.rank.number for i in range(cfg.accumulate)
        ]
        with self._autocast():
            batches = [
                self.data.batch(number, cfg.batch_size).to(self.device, self.layout)
                for number in numbers
            ]
        for part, optimizer in zip(self.objective.parts, self.optimizers):
            if step < part.start:
                continue
            for number, batch in zip(numbers, batches):
                torch.manual_seed(_seed(self.run.seed, number, 0))  # dropout
                seed = _seed(self.run.seed, number, 1)
                generator = torch.Generator(self.device).manual_seed(seed)
                with self._autocast():
                    loss, logged = part.loss(batch, step, generator)
                (loss / cfg.accumulate).backward()
                scalars |= {f"loss/{part.name}": loss.detach(), **logged}
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
        decay = min(cfg.ema, (2 + step) / (11 + step))  # short memory at the start
        weights = [p.detach() for p in self.objective.model.parameters()]
        torch._foreach_lerp_(self.ema, weights, 1 - decay)  # type: ignore  # no public name
        return scalars

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

    def save(self, run_dir: Path, step: int) -> None:
        tensors = {f"trained.{k}": v for k, v in self.objective.trained.state_dict().items()}
        tensors |= {f"ema.{i}": v for i, v in enumerate(self.ema)}
        for part, optimizer in zip(self.objective.parts, self.optimizers):
            tensors |= flatten_optimizer(part.name, optimizer)
        meta = {
            "config": dump_config(self.run),
            "versions": {
                "ldm_dream": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "command": " ".join(sys.argv),
        }
        save_checkpoint(run_dir, step, tensors, meta, self.run.train.keep_checkpoints)

    def resume(self, run_dir: Path) -> int:
        """The newest whole checkpoint of `run_dir` -> its step; 0 where there is none."""
        found = latest_checkpoint(run_dir)
        if found is None:
            return 0
        mark, trained = "trained.", self.objective.trained
        state = {k.removeprefix(mark): v for k, v in found.tensors.items() if k.startswith(mark)}
        own = trained.state_dict()
        if state.keys() != own.keys() or any(state[k].shape != own[k].shape for k in own):
            raise TrainingError(
                f"{run_dir} holds a run of another model; "
                "give another --run-dir or the config it was started with."
            )
        trained.load_state_dict(state)
        for i, average in enumerate(self.ema):
            average.copy_(found.tensors[f"ema.{i}"])
        for part, optimizer in zip(self.objective.parts, self.optimizers):
            restore_optimizer(part.name, optimizer, found.tensors)
        return found.step

    def _autocast(self) -> torch.autocast:
        lower = self.run.train.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=lower)


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


def release(run: Run, folder: Path, model: nn.Module) -> None:
    """Write the model folder with the model's present weights."""
    text = run.description or "Trained with ldm_dream."
    card = f"# {folder.parent.name}\n\n{text}\n\nExpected: {run.expected}\n"
    save_model(folder, run, model.state_dict(), card)


@torch.no_grad()
def _put(model: nn.Module, values: list[Tensor]) -> None:
    for p, value in zip(model.parameters(), values):
        p.copy_(value)


class Log:
    """One call writes the numbers to `metrics.jsonl` and a line to stdout, above a progress bar
    where stderr is a terminal; nothing unless this is the run's first process.
    """

    def __init__(self, run_dir: Path, step: int, steps: int, active: bool):
        run_dir.mkdir(parents=True, exist_ok=True)
        self.path, self.steps, self.active = run_dir / "metrics.jsonl", steps, active
        self.since, self.at = time.monotonic(), step
        off = None if active else True  # None: only on a terminal
        self.bar = tqdm(initial=step, total=steps, unit="step", disable=off, dynamic_ncols=True)

    def __call__(self, step: int, scalars: dict[str, float]) -> None:
        if not self.active:
            return
        row = {"step": step, **scalars}
        self.bar.set_postfix({k: v for k, v in scalars.items() if k.startswith("loss/")})
        if step > self.at:
            now = time.monotonic()
            row["steps_per_second"] = (step - self.at) / (now - self.since)
            row["eta_s"] = (self.steps - step) / row["steps_per_second"]
            self.since, self.at = now, step
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.line(
            "  ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
            )
        )

    def line(self, text: str) -> None:
        if self.active:
            with self.bar.external_write_mode():
                sys.stdout.write(text + "\n")
                sys.stdout.flush()


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
