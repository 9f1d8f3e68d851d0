"""The training loop, the file to read first: data -> objective -> optimizer -> EMA -> log,
validation, checkpoint.

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
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm_dream import __version__
from ldm_dream.config.files import dump_config
from ldm_dream.config.run import AutoencoderRun, DiffusionRun, Run, TrainConfig
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
from ldm_dream.scoring.metrics import load_lpips
from ldm_dream.training import distributed
from ldm_dream.training.autoencoder import AutoencoderObjective
from ldm_dream.training.checkpoint import (
    Checkpoint,
    flatten_optimizer,
    latest_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from ldm_dream.training.diffusion import DiffusionObjective
from ldm_dream.training.heap import keep_freed_memory
from ldm_dream.training.latents import LatentDataset
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
        _train(run, run_dir, rank)


def _train(run: Run, run_dir: Path, rank: distributed.Rank) -> None:
    cfg, device = run.train, rank.device
    layout = torch.channels_last if cfg.channels_last else torch.contiguous_format
    torch.manual_seed(run.seed)
    if device.type == "cpu":
        keep_freed_memory()
    if isinstance(run, DiffusionRun):
        run = run.model_copy(update={"autoencoder": resolve_autoencoder(run.autoencoder)})
    lpips = load_lpips(run.lpips_weights).to(device) if run.lpips_weights else None
    scale = run.scale if isinstance(run, DiffusionRun) else 1
    data = PairDataset(run.data, scale, run.seed)
    if isinstance(run, AutoencoderRun):
        objective = AutoencoderObjective(run, lpips)
    else:
        autoencoder = load_autoencoder(run.autoencoder).to(device, memory_format=layout)
        objective = DiffusionObjective(run, autoencoder, lpips)
        if run.data.cache_latents:
            data = LatentDataset(data, autoencoder, run.data.cache_latents)
    val = validation_pairs(run.data, scale, cfg.val_images, cfg.val_crop) if rank.is_first else []

    if cfg.init_from:
        load_weights(objective.model, find_model(cfg.init_from) / "model.safetensors")
    objective.trained.to(device, memory_format=layout).train()
    _freeze(objective.model, cfg.freeze)
    if cfg.compile or (cfg.compile is None and device.type == "cuda" and not run.data.scales):
        os.environ.setdefault(
            "TORCHINDUCTOR_CACHE_DIR", str((run_dir / "compiled").resolve())
        )  # a resumed run starts warm
        compile_blocks(objective.model)
    objective.share_gradients()
    optimizers = [
        make_optimizer(cfg, [p for p in part.parameters if p.requires_grad])
        for part in objective.parts
    ]
    ema = [p.detach().clone() for p in objective.model.parameters()]
    step = _resume(run, run_dir, objective, optimizers, ema)
    log = Log(run_dir, step, cfg.steps, rank.is_first)
    parameters = sum(p.numel() for p in objective.model.parameters())
    log.line(
        f"{parameters:,} parameters, {len(data)} pictures, {rank.world} x {device.type}, from step {step}"
    )

    while step < cfg.steps:
        scalars: dict[str, Tensor] = {}
        numbers = [
            (step * cfg.accumulate + i) * rank.world + rank.number for i in range(cfg.accumulate)
        ]  # of the micro-batches
        with _autocast(cfg, device):
            batches = [data.batch(number, cfg.batch_size).to(device, layout) for number in numbers]
        for part, optimizer in zip(objective.parts, optimizers):
            if step < part.start:
                continue
            for number, batch in zip(numbers, batches):
                torch.manual_seed(_seed(run.seed, number, 0))  # dropout
                generator = torch.Generator(device).manual_seed(_seed(run.seed, number, 1))
                with _autocast(cfg, device):
                    loss, logged = part.loss(batch, step, generator)
                (loss / cfg.accumulate).backward()
                scalars |= {f"loss/{part.name}": loss.detach(), **logged}
            norm = torch.nn.utils.clip_grad_norm_(part.parameters, cfg.clip_grad or math.inf)
            if not (torch.isfinite(loss) and torch.isfinite(norm)):
                raise TrainingError(
                    f"step {step}: loss {loss.item()}, gradient norm {norm.item()} of part {part.name} is not finite; the last "
                    "checkpoint is kept. Lower train.learning_rate or set train.precision=fp32."
                )
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(cfg, step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            scalars[f"grad_norm/{part.name}"] = norm
        step += 1
        decay = min(cfg.ema, (1 + step) / (10 + step))  # short memory at the start
        torch._foreach_lerp_(ema, [p.detach() for p in objective.model.parameters()], 1 - decay)

        if step % cfg.log_every == 0 or step == cfg.steps:
            means = {
                name: distributed.mean(value.detach()).item() for name, value in scalars.items()
            }
            log(step, means | {"learning_rate": learning_rate(cfg, step - 1)})
        if val and (step % cfg.val_every == 0 or step == cfg.steps):
            with _averaged(objective.model, ema), _autocast(cfg, device):
                log(
                    step,
                    validate(
                        objective,
                        val,
                        lpips,
                        device,
                        run_dir / "samples" / f"step-{step:08d}.png",
                        run.seed,
                    ),
                )
        if rank.is_first and (step % cfg.save_every == 0 or step == cfg.steps):
            _save(run, run_dir, step, objective, optimizers, ema)
    if rank.is_first:
        with _averaged(objective.model, ema):
            release(run, run_dir / "model", objective)
    log.line(f"done: {run_dir / 'model'}")


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


def release(run: Run, folder: Path, objective) -> None:
    """Write the model folder with the module's present weights."""
    card = f"# {folder.parent.name}\n\n{run.description or 'Trained with ldm_dream.'}\n\nExpected: {run.expected}\n"
    save_model(folder, run, objective.model.state_dict(), card)


# -------------------------------------------------------------------------------------- checkpoints


def _save(
    run: Run, run_dir: Path, step: int, objective, optimizers: list, ema: list[Tensor]
) -> None:
    tensors = {f"trained.{k}": v for k, v in objective.trained.state_dict().items()}
    tensors |= {f"ema.{i}": v for i, v in enumerate(ema)}
    for part, optimizer in zip(objective.parts, optimizers):
        tensors |= flatten_optimizer(part.name, optimizer)
    versions = {
        "ldm_dream": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    meta = {"config": dump_config(run), "versions": versions, "command": " ".join(sys.argv)}
    save_checkpoint(run_dir, step, tensors, meta, run.train.keep_checkpoints)


def _resume(run: Run, run_dir: Path, objective, optimizers: list, ema: list[Tensor]) -> int:
    found: Checkpoint | None = latest_checkpoint(run_dir)
    if found is None:
        return 0
    state = {
        k.removeprefix("trained."): v for k, v in found.tensors.items() if k.startswith("trained.")
    }
    own = objective.trained.state_dict()
    if state.keys() != own.keys() or any(state[k].shape != own[k].shape for k in own):
        raise TrainingError(
            f"{run_dir} holds a run of another model; give another --run-dir or the config it was started with."
        )
    objective.trained.load_state_dict(state)
    for i, average in enumerate(ema):
        average.copy_(found.tensors[f"ema.{i}"])
    for part, optimizer in zip(objective.parts, optimizers):
        restore_optimizer(part.name, optimizer, found.tensors)
    return found.step


class _averaged:  # noqa: N801
    """Context: the module carries its EMA weights in eval mode, and gets its own weights and mode
    back.
    """

    def __init__(self, module: nn.Module, ema: list[Tensor]):
        self.module, self.ema = module, ema

    def __enter__(self) -> None:
        self.kept = [p.detach().clone() for p in self.module.parameters()]
        self._put(self.ema)
        self.module.eval()

    def __exit__(self, *_) -> None:
        self._put(self.kept)
        self.module.train()

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        for p, value in zip(self.module.parameters(), values):
            p.copy_(value)


# -------------------------------------------------------------------------------------- small parts


class Log:
    """One call writes the numbers to `metrics.jsonl` and a line to stdout; nothing unless this is
    the run's first process.
    """

    def __init__(self, run_dir: Path, step: int, steps: int, active: bool):
        run_dir.mkdir(parents=True, exist_ok=True)
        self.path, self.steps, self.active = run_dir / "metrics.jsonl", steps, active
        self.since, self.at = time.monotonic(), step

    def __call__(self, step: int, scalars: dict[str, float]) -> None:
        if not self.active:
            return
        row = {"step": step, **scalars}
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


def _autocast(cfg: TrainConfig, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision == "bf16")


def _seed(*numbers: int) -> int:
    """One 63-bit seed from several small numbers."""
    mixed = 0x9E3779B97F4A7C15
    for number in numbers:
        mixed = ((mixed ^ number) * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
        mixed ^= mixed >> 31
    return mixed % 2**63
