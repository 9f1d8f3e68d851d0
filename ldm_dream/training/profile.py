"""A trace of some steps, to be looked at in https://ui.perfetto.dev or chrome://tracing."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from ldm_dream.writing import whole_file

log = logging.getLogger(__name__)

WARM_UP = 3  # steps before the first that is traced


class Profile:
    """In the body, `step` ends a step; `steps` of them are traced to `run_dir/trace.json`. 0: none."""

    def __init__(self, run_dir: Path, steps: int):
        self.path, self.steps, self.done = run_dir / "trace.json", steps, 0
        if not steps:
            return
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self.profiler = torch.profiler.profile(activities=kinds, record_shapes=True)

    def __enter__(self) -> Profile:
        return self

    def step(self) -> None:
        self.done += 1
        if self.done == WARM_UP:
            self.profiler.start()
        elif self.done == WARM_UP + self.steps:
            self._write()

    def __exit__(self, *_: object) -> None:
        if self.steps and self.done <= WARM_UP:
            log.warning("no trace was written: the run ended before its %dth step.", WARM_UP + 1)
        elif WARM_UP <= self.done < WARM_UP + self.steps:  # the run ended in the middle
            self._write()

    def _write(self) -> None:
        self.profiler.stop()
        with whole_file(self.path) as draft:
            self.profiler.export_chrome_trace(str(draft))
