"""Configs with mistakes in them: each is a run that can be built, or one sentence.

A mutant is a shipped config whose text was damaged, or that was given overrides. What passes is
built without memory (meta device) and run once on the sizes that it asks for.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import tempfile
from pathlib import Path

import torch

from faults.runner import Tally, run_all
from ldm_dream.config.data import BlindConfig
from ldm_dream.config.files import load_config
from ldm_dream.config.run import DiffusionRun, Run
from ldm_dream.data.blind import degrade_blind
from ldm_dream.errors import UserError, shown
from ldm_dream.model_config import resolve_autoencoder
from ldm_dream.networks import build_network
from ldm_dream.networks.autoencoders import build_autoencoder
from ldm_dream.networks.vqgan import VQGAN
from ldm_dream.process import Process, build_process
from ldm_dream.training.check import check_run

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MOST_WORDS = 700  # characters of a sentence
SMALL = 10**7  # parameters of a network that is run once

VALUES = (Path(__file__).parent / "config_values.txt").read_text().splitlines()
TOKENS = (
    *VALUES,
    "&a [",
    "*a",
    "<<: *a",
    "? [a]",
    ": ",
    "\n",
    "\n  ",
    "[" * 30,
    "{" * 30,
    "\t",
    "#",
)
TOKENS += (
    "- ",
    "base: ",
    "\0",
    "\x1b",
    "\ud7ff",
    "!!set {a}",
    "%YAML 9.9\n---\n",
    "---\n",
    "'",
    '"',
)


def run(n: int, seed: int) -> Tally:
    """`n` mutants from `seed`."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(CONFIGS, Path(folder) / "configs")
        return run_all(lambda number: check(Path(folder), seed, number), n)


def check(folder: Path, seed: int, number: int) -> str:
    """Verdict on one mutant."""
    rng = random.Random(f"{seed} {number}")
    files = sorted((folder / "configs").glob("*/[a-z0-9]*.yaml"))
    path, overrides = rng.choice(files), []
    mutant = path.with_name(f"_{os.getpid()}.yaml")
    if rng.random() < 0.5:
        mutant.write_bytes(damaged(path.read_bytes(), rng))
    else:
        shutil.copyfile(path, mutant)
        overrides = [override(load_config(path), rng) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
    try:
        return judge(mutant, overrides)
    except Exception as error:
        text = overrides or mutant.read_bytes()
        raise RuntimeError(f"{path.relative_to(folder)} {text!r}") from error
    finally:
        mutant.unlink()


def judge(path: Path, overrides: list[str]) -> str:
    """Reads a config and tries it. Raises AssertionError for a sentence that is none."""
    try:
        run = load_config(path, overrides)
        check_run(run, Path("run"), starts=False)
    except UserError as error:
        words = " ".join(str(error).split())
        assert shown(words).isprintable(), f"no line that can be printed: {error!r}"
        assert len(words) < MOST_WORDS and words[-1] in ".?)", f"no sentence: {words}"
        return "refused"
    attempt(run)
    return "accepted"


def attempt(run: Run) -> None:
    """Builds what the run builds, and takes one step of it without memory."""
    degradation, scale = run.data.degradation, run.scale
    if isinstance(degradation, BlindConfig) and scale < 9:
        assert (
            degrade_blind(torch.rand(1, 3, *[16 * scale] * 2), scale, degradation, [1])
            .isfinite()
            .all()
        )
    autoencoder = run.autoencoder  # of one that is not here, its own knobs
    if autoencoder.pretrained == "vq-f4-tiny":
        autoencoder = resolve_autoencoder(autoencoder)
    hr = torch.empty(1, 3, run.data.patch, run.data.patch, device="meta")
    with torch.device("meta"):
        coder = build_autoencoder(autoencoder)
        z = coder.encode(hr)
        decoded = coder.decode(z, False) if isinstance(coder, VQGAN) else coder.decode(z)
    if run.data.train:
        assert z.shape[1] == coder.channels and decoded.shape == hr.shape
    if isinstance(run, DiffusionRun):
        try_network(run, z)
        try_process(build_process(run.process))


def try_network(run: DiffusionRun, z: torch.Tensor) -> None:
    """A forward pass on latents like z; of a large network, that it is built."""
    with torch.device("meta"):
        network = build_network(run.network)
        known = run.autoencoder.pretrained in (None, "vq-f4-tiny") and run.data.train
        if not known or run.network.least_parameters > SMALL:
            return
        lr = torch.empty(1, 3, *[run.data.patch // run.scale] * 2)
        parts = {"lr": lr, "z_lr": z}
        if network.cond_factor is None:
            cond = lr
        else:
            size = [network.cond_factor * length for length in z.shape[-2:]]
            channels = [parts[name].shape[1] for name in run.condition]
            cond = torch.empty(1, sum(channels), *size)
        features = network.prepare(cond, (z.shape[-2], z.shape[-1]))
        assert network(z, network.embed(torch.zeros(1)), *features).shape == z.shape


def try_process(process: Process) -> None:
    steps = torch.arange(process.num_timesteps)
    for table in (process.a, process.s, process.weight):
        assert table(steps).isfinite().all()
    if process.num_timesteps > 1:
        assert process.posterior_variance(steps[1:], steps[:-1]).isfinite().all()


# ------------------------------------------------------------------------------------------ mutants


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes of a config with one to four faults."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.randint(1, 40))
        token = rng.choice(TOKENS).encode("utf-8", "surrogatepass")
        values = list(re.finditer(rb"(?<=[:\[, ] )[^,\]}\n]+|(?<=\[)[^,\]}\n]+", data))
        spot = rng.choice(values).span() if values else (at, end)
        kind = rng.randrange(8)
        if kind == 0:
            data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + data[end:]
        elif kind == 2:
            data = data[:at] + token + data[at:]
        elif kind == 3:
            data = data[:end] + data[at:end] * rng.choice((1, 2, 50)) + data[end:]
        elif kind == 4:
            data = data[:at]
        else:
            data = data[: spot[0]] + token + data[spot[1] :]
    return data


def override(run: Run, rng: random.Random) -> str:
    """`a.b=value` of a knob that the run has."""
    value = rng.choice(VALUES)
    keys = list(leaves(run.model_dump(mode="json")))
    if rng.random() < 0.1:
        value = rng.choice((f"[{','.join([value] * 9)}]", f"{{a: {value}}}", value * 40))
    return f"{rng.choice(keys)}={value}"


def leaves(values: dict, above: str = ""):
    for key, value in values.items():
        yield above + key
        if isinstance(value, dict):
            yield from leaves(value, f"{above}{key}.")
