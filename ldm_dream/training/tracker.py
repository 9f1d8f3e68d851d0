"""Live curves of a run beside `metrics.jsonl`: TensorBoard, Weights & Biases or trackio."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from pathlib import Path
from typing import Any, Protocol

from ldm_dream.config.run import Run
from ldm_dream.errors import UserError

PROJECT = "ldm_dream"


class TrackerError(UserError, RuntimeError):
    """A tracker that is not installed or does not start."""


class Tracker(Protocol):
    def log(self, step: int, figures: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class Nothing:
    def log(self, step: int, figures: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class TensorBoard:
    """Event files in `run_dir/tensorboard`."""

    def __init__(self, run: Run, run_dir: Path):
        writer = _imported("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self.writer = writer(str(run_dir / "tensorboard"))

    def log(self, step: int, figures: dict[str, Any]) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class Service:
    """wandb, and trackio, which has its face. A run that is resumed goes on there: its id is that of
    the run folder.
    """

    def __init__(self, package: str, run: Run, run_dir: Path):
        folder = run_dir.resolve()
        name = f"{folder.name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
        self.module = _imported(package, package)
        own = {"id": name, "dir": str(folder)} if package == "wandb" else {}
        config = run.model_dump(mode="json")
        self.module.init(project=PROJECT, name=name, config=config, resume="allow", **own)

    def log(self, step: int, figures: dict[str, Any]) -> None:
        self.module.log(figures, step=step)

    def close(self) -> None:
        self.module.finish()


def check_tracker(kind: str | None) -> None:
    """Raises TrackerError for one that is not installed."""
    if kind and importlib.util.find_spec(kind) is None:
        raise _missing(kind)


def open_tracker(run: Run, run_dir: Path, is_first: bool) -> Tracker:
    """That of `train.tracker`; the first process of a run has it. Raises TrackerError."""
    kind = run.train.tracker
    if not is_first or kind is None:
        return Nothing()
    if kind == "tensorboard":
        return TensorBoard(run, run_dir)
    return Service(kind, run, run_dir)


def _imported(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise _missing(package) from None


def _missing(package: str) -> TrackerError:
    return TrackerError(
        f"train.tracker={package} needs the package {package}; install it with: "
        f"pip install {package}, or leave train.tracker out."
    )
