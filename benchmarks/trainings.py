"""Trainings that a benchmark needs: each in its run folder, where it goes on if it was stopped; and the
time of a step, by which arms that take equal time get their numbers of steps.
"""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ldm_dream.config.files import load_config
from ldm_dream.config.run import DiffusionRun
from ldm_dream.errors import UserError
from ldm_dream.writing import whole_file

STAYS = "the same command goes on from here"
PATIENCE = 60  # seconds that a training may take to save its state
TOOL = ("tools/train.py",)
PACE_STEPS, PACE_EVERY, PACE_TURNS = 40, 10, 2


def python(words: Sequence[str]) -> str:
    """A tool as a process -> what it has said. One that is to stop is told so, and waited for: a
    training saves its state. Raises SystemExit with its output where it fails.
    """
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            [sys.executable, *words], stdout=said, stderr=said, start_new_session=True
        ) as training,
    ):
        try:
            status = training.wait()
        except KeyboardInterrupt:
            training.send_signal(signal.SIGINT)
            training.wait()
            raise
        said.seek(0)
        output = said.read()
    if status:
        raise SystemExit(f"{' '.join(words)} failed:\n{output}")
    return output


@contextmanager
def alone(runs: Path) -> Iterator[None]:
    """Raises UserError where another process trains for this folder."""
    runs.mkdir(parents=True, exist_ok=True)
    with open(runs / "lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--runs {runs}: another command is at work here; let it end, or name another folder."
            ) from None
        yield


def refuse_own(words: Sequence[str], own: Container[str], command: str) -> None:
    """Raises UserError for a knob of --set that the command sets itself."""
    for word in words:
        if (knob := word.partition("=")[0]) in own:
            raise UserError(f"--set {word}: `{command}` sets {knob} itself; leave it out.")


def train(config: str, place: Path, knobs: Sequence[str], tool: Sequence[str] = TOOL) -> None:
    python([*tool, config, "--run-dir", str(place), "--set", *knobs])


def diffusion_run(config: str, knobs: Sequence[str]) -> DiffusionRun:
    """Raises UserError for an autoencoder's config."""
    run = load_config(config, list(knobs))
    if not isinstance(run, DiffusionRun):
        raise UserError(f"{config} trains an autoencoder; DREAM is for task: diffusion.")
    return run


def pace(
    runs: Path,
    recipe: Mapping[str, object],
    knobs: Sequence[str],
    arms: Mapping[str, list[str]],
    tools: Mapping[str, Sequence[str]] = {},
) -> dict[str, float]:
    """Seconds of a step of each arm (name -> its knobs), the least of turns, from patches whose
    latents are kept; or as measured when the first run in `runs` began. recipe: its config, and all
    that makes runs comparable. tools: arm -> what trains it, if that is another one. Raises
    UserError where `runs` holds those of another recipe.
    """
    file = runs / "pace.json"
    if file.exists():
        known = json.loads(file.read_text())
        if known["recipe"] != recipe:
            raise UserError(
                f"--runs {runs}: holds runs of {known['recipe']}, not of {recipe}; name another folder."
            )
        if missing := arms.keys() - known["seconds"].keys():
            raise UserError(
                f"--runs {runs}: the time of a step was taken without {', '.join(sorted(missing))}; "
                "name another folder."
            )
        return known["seconds"]
    config = str(recipe["config"])
    run = diffusion_run(config, knobs)
    few = [f"train.steps={PACE_STEPS}", f"train.save_every={PACE_STEPS}", "train.val_images=0"]
    few.append(f"train.log_every={PACE_EVERY}")
    if run.data.cache_latents:
        few.append(f"data.cache_latents={PACE_EVERY * run.train.batch_size}")
    found: dict[str, list[float]] = {arm: [] for arm in arms}
    memory: dict[str, float | None] = {}
    for _ in range(PACE_TURNS):
        for arm, own in arms.items():
            with tempfile.TemporaryDirectory() as place:
                train(config, Path(place) / "run", [*knobs, *own, *few], tools.get(arm, TOOL))
                lines = (Path(place) / "run/metrics.jsonl").read_text().splitlines()
            logged = [row for row in map(json.loads, lines) if "steps_per_second" in row]
            # by then latents and memory are there
            found[arm] += [1 / row["steps_per_second"] for row in logged[2:]]
            memory[arm] = logged[-1].get("memory_gib")
    # the least: other work on the machine only adds to it
    seconds = {arm: min(times) for arm, times in found.items()}
    runs.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as draft:
        draft.write_text(json.dumps({"recipe": recipe, "seconds": seconds, "memory_gib": memory}))
    return seconds


def memory_gib(runs: Path, arm: str) -> float | None:
    """That the training of an arm took when `pace` measured; None where that is not known."""
    return json.loads((runs / "pace.json").read_text()).get("memory_gib", {}).get(arm)
