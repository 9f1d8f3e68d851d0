"""Training, the file to read first: data -> objective -> optimizer -> EMA -> log, validation,
model, checkpoint.

Every random choice is a function of the seed and of a micro-batch's number in the run, so there is
no random state to keep: a run that was killed and started again by the same command ends with the
same weights, bit for bit on CPU in fp32, as one that was never stopped, and n processes under
torchrun train as one process that accumulates n micro-batches. `metrics.jsonl` is the log.
"""

from __future__ import annotations

import signal
from contextlib import closing
from pathlib import Path

import torch

from ldm_dream.config.run import Run
from ldm_dream.training import distributed, state
from ldm_dream.training.log import Log
from ldm_dream.training.profile import Profile
from ldm_dream.training.results import Results
from ldm_dream.training.run_folder import claim
from ldm_dream.training.signals import Stop, StoppedAtOnce
from ldm_dream.training.start import open_run
from ldm_dream.training.tracker import open_tracker
from ldm_dream.training.trainer import Trainer, learning_rate


def train(run: Run, run_dir: Path, profile: int = 0) -> int:
    """Train `run` to its last step in `run_dir`, resuming from the newest whole checkpoint there;
    -> exit status: 0, or 128 + the number of the signal that ended it.

    Writes `run_dir/model` and `run_dir/model-best`. profile: steps of which a trace is written to
    `run_dir/trace.json`. Raises UserError.
    """
    with distributed.start() as rank, Stop() as stop:
        if not rank.is_first:
            return _train(run, run_dir, rank, stop, None, profile)
        with claim(run_dir) as said:
            return _train(run, run_dir, rank, stop, said, profile)


def _train(
    run: Run, run_dir: Path, rank: distributed.Rank, stop: Stop, said: str | None, profile: int
) -> int:
    found = state.newest_for_all(run_dir)
    start = open_run(run, run_dir, rank, found)
    trainer = Trainer(start, rank, run_dir)
    step = state.resume(trainer, found, run_dir) if found else 0
    if found and rank.is_first:
        start.record(run_dir, step)
    start.history[:] = distributed.of_first_object(start.history)
    tracker = open_tracker(run, run_dir, rank.is_first)
    with (
        closing(tracker),
        closing(Log(run_dir, step, run.train.steps, rank.is_first, tracker)) as log,
        Profile(run_dir, profile if rank.is_first else 0) as profiler,
    ):
        log.validations = distributed.of_first_object(log.validations)
        results = Results(trainer, run_dir, log, stop)
        batch = distributed.batch_of_a_step(run.train.batch_size, trainer.micro_batches, rank.world)
        for line in (said, *start.said, batch, f"{trainer.describe()}, from step {step}"):
            if line:
                log.line(line)
        with closing(trainer.load_from(step)):
            step, why = _loop(trainer, step, results, stop, profiler)
        log.line(why)
    return stop.status


def _loop(
    trainer: Trainer, step: int, results: Results, stop: Stop, profiler: Profile
) -> tuple[int, str]:
    """From `step` to the last one, to a signal, or to an early end; -> where and why it ended. A
    checkpoint that is due comes before a validation, which may take long.
    """
    cfg, rank, log, run_dir = trainer.run.train, trainer.rank, results.log, results.run_dir
    saved, stopped, cut, early = step, False, False, None

    def save() -> None:
        nonlocal saved
        if step != saved:
            trainer.check_finite()
            state.save(trainer, run_dir, step)
            saved = step

    while True:
        last = step >= cfg.steps
        if step % cfg.save_every == 0 or last or stopped:
            save()
        if step % results.every == 0 or last:
            try:
                early = results.report(step, stopped)
            except StoppedAtOnce:
                cut = True
        if last or stopped or early or cut:
            save()
            break
        if said := trainer.objective.begins(step):
            log.line(said)
        trainer.means.add(trainer.step(step))
        if profiler.steps:
            profiler.step()
        step += 1
        log.bar.update()
        if step % cfg.log_every == 0 or step == cfg.steps:
            trainer.check_finite()
            log(step, trainer.measured() | {"learning_rate": learning_rate(cfg, step - 1)})
        stopped = stop.signal is not None
        if rank.world > 1:
            stopped = bool(distributed.anywhere(torch.tensor(stopped)))
    if step >= cfg.steps and not cut:
        return step, f"done: {run_dir / 'model'}"
    if early:
        return step, f"ended early at step {step}, {early}: {run_dir / 'model-best'}"
    # told to another process: by 0 torchrun would take this end for that of the run
    stop.signal = stop.signal or signal.SIGTERM
    return step, f"stopped at step {step}, checkpoint written; the same command goes on from there"
