"""For how much of its time a training step waits for data, by workers, their niceness and threads.

    python -m benchmarks data-wait --config configs/tiny/sr3-dream.yaml --workers 0 1

The config's run on made pictures of DIV2K's size, in turns, each turn on the next batches: first on
pictures that no one has read, then on kept ones, then on pictures that are decoded at each visit.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from ldm_dream.config.files import load_config
from ldm_dream.config.run import Run
from ldm_dream.data import loader as loading
from ldm_dream.training import distributed
from ldm_dream.training.start import Start
from ldm_dream.training.trainer import Trainer

from .data import DATA_KINDS, GIB, make
from .record import Measured
from .tables import finish

Turn = tuple[int, int, int]  # workers, their niceness, threads that train


def main(args: argparse.Namespace) -> None:
    turns = [
        (workers, nice, threads)
        for threads in args.threads or [torch.get_num_threads()]
        for workers in args.workers
        for nice in (args.nice if workers else args.nice[:1])
    ]
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        source = make(Path(folder), DATA_KINDS["div2k"], args.pictures)
        for state, gib in (("kept", GIB), ("not kept", 0)):
            run = load_config(
                args.config,
                [*args.set, f"data.train=[{source}]", "data.val=[]", f"data.keep_gib={gib}",
                 "data.cache_latents=0"],
            )  # fmt: skip
            measured += _measure(run, state, turns, args)
    finish(args, "data-wait", measured)


def _measure(run: Run, state: str, turns: list[Turn], args: argparse.Namespace) -> list[Measured]:
    with distributed.start() as rank, tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(Start(run), rank, Path(folder))
        at = -(-args.pictures // run.train.batch_size)  # steps in which every picture is read once
        seconds, _ = take(trainer, turns[0], 0, at)
        print(f"{state}: {at} steps with first visits in {seconds:.1f} s", flush=True)
        times: dict[Turn, list[float]] = {turn: [] for turn in turns}
        waits: dict[Turn, list[float]] = {turn: [] for turn in turns}
        for _ in range(args.repetitions):
            for turn in turns:
                seconds, waited = take(trainer, turn, at, args.steps)
                at += args.steps + 1
                times[turn].append(seconds / args.steps)
                waits[turn].append(waited / seconds)
    found = []
    for turn in turns:
        workers, nice, threads = turn
        settings = {
            "workers": workers, "nice": nice, "training_threads": threads, "state": state,
            "steps": args.steps, "batch_size": run.train.batch_size, "set": args.set,
        }  # fmt: skip
        metrics = {"seconds": statistics.median(times[turn]), "repetitions": times[turn]}
        metrics["waits"] = statistics.median(waits[turn])
        found.append(
            Measured(args.config, f"{workers} workers, nice {nice}, {state}", settings, metrics)
        )
    return found


def take(trainer: Trainer, turn: Turn, start: int, steps: int) -> tuple[float, float]:
    """-> seconds of so many steps from `start` + 1 on, and for how many of them data was waited for.
    The first step, in which workers start, does not count.
    """
    workers, loading.NICE, threads = turn
    torch.set_num_threads(threads)
    trainer.run = trainer.run.model_copy(
        update={"train": trainer.run.train.model_copy(update={"workers": workers})}
    )
    loader = trainer.load_from(start)
    trainer.step(start)
    begin, waited = time.perf_counter(), loader.waited
    for step in range(start + 1, start + 1 + steps):
        trainer.step(step)
    seconds, waited = time.perf_counter() - begin, loader.waited - waited
    loader.close()
    return seconds, waited
