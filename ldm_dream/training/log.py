"""What a run says: `metrics.jsonl`, one row of numbers for a step, and a line on stdout."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ldm_dream.training.tracker import Nothing, Tracker
from ldm_dream.writing import append_line, whole_file

METRICS = "metrics.jsonl"


class Log:
    """One call writes the numbers to `metrics.jsonl` and a line to stdout, above a progress bar
    where stderr is a terminal; nothing unless this is the run's first process.

    Rows after `step`, which a killed process wrote and this one makes again, are removed, so a step
    has one row of each kind.
    """

    def __init__(
        self, run_dir: Path, step: int, steps: int, active: bool, tracker: Tracker | None = None
    ):
        self.path, self.steps, self.active = run_dir / METRICS, steps, active
        self.tracker = tracker or Nothing()
        self.since, self.at = time.monotonic(), step
        self.validations: dict[int, dict[str, float]] = {}
        if active:
            self._keep_until(step)
        off = None if active else True  # None: only on a terminal
        self.bar = tqdm(initial=step, total=steps, unit="step", disable=off, dynamic_ncols=True)

    def _keep_until(self, step: int) -> None:
        rows = [row for row in read_rows(self.path) if row["step"] <= step]
        if rows or self.path.exists():
            with whole_file(self.path) as draft:
                draft.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        self.validations = _validations(rows)

    def __call__(self, step: int, scalars: dict[str, float]) -> None:
        self.validations |= _validations([{"step": step, **scalars}])  # in every process
        if not self.active:
            return
        row = {"step": step, **scalars}
        self.bar.set_postfix({k: v for k, v in scalars.items() if k.startswith("loss/")})
        if step > self.at:
            now = time.monotonic()
            row["steps_per_second"] = (step - self.at) / (now - self.since)
            row["eta_s"] = (self.steps - step) / row["steps_per_second"]
            self.since, self.at = now, step
        row = _finite(row)
        append_line(self.path, json.dumps(row))
        self.tracker.log(step, {k: v for k, v in row.items() if k != "step" and v is not None})
        self.line(
            "  ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
            )
        )

    def close(self) -> None:
        self.bar.close()

    def line(self, text: str) -> None:
        if not self.active:
            return
        try:
            with self.bar.external_write_mode():
                sys.stdout.write(text + "\n")
                sys.stdout.flush()
        except BrokenPipeError:  # the reader has gone; the run has not
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            with suppress(OSError):  # that may be gone with it
                sys.stderr.write(f"stdout is closed; the log goes on in {self.path}\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a `metrics.jsonl`; lines that are none are left out, such as a last one that was cut
    short by a kill or a full disk.
    """
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def validations(path: Path) -> dict[int, dict[str, float]]:
    """Step -> figures of its validation, of a `metrics.jsonl`."""
    return _validations(read_rows(path))


def _validations(rows: list[dict[str, Any]]) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for row in rows:
        if figures := {key: value for key, value in row.items() if key.startswith("val/")}:
            found[row["step"]] = figures
    return found


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no infinity: such a figure is null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
