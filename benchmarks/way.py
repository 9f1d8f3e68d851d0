"""What a reader meets on the way: the source files and functions of this project that one DREAM
training step and one sampling call execute.

Counted with `sys.setprofile`, which reports every call of a Python function. The step is one of the
real loop of `ldm_dream/training/train.py` on made-up pictures, from the end of one optimizer step to
the end of the next: EMA, batch, loss, backward, optimizer. Its picture was read by an earlier step; it
is cut and encoded here (`data.cache_latents` is off). Log, validation and checkpoint, which
most steps pass by, are not in it, nor is LPIPS, whose weights are not at hand. The call is that of a
loaded `Upscaler` on a made-up picture. Both have run before, so what happens once (building,
compiling, filling of tables) is left out. A lambda or a comprehension belongs to the function around
it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from pathlib import Path
from types import CodeType, FrameType

import numpy as np
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_post_hook

import dream_kernels
import ldm_dream
from ldm_dream.config.files import load_config
from ldm_dream.training.train import train
from ldm_dream.upscaling.upscaler import Upscaler

PACKAGES = {
    "ldm_dream": Path(ldm_dream.__file__).parent,
    "kernels/dream_kernels": Path(dream_kernels.__file__).parent,
}
CONFIG = "configs/tiny/dream-latent-x4-tiny.yaml"
STEPS = 4  # of the run, all of one picture, which the first decodes; the third is counted
SIDE = 32  # pixels a side of the picture that the sampling call enlarges
Way = dict[str, list[str]]  # source file -> its functions that ran, as name:line


class Recorder:
    """The functions that are called in this thread between `start` and `stop`."""

    def __init__(self) -> None:
        self.codes: set[CodeType] = set()

    def start(self) -> None:
        sys.setprofile(self._event)

    def stop(self) -> None:
        sys.setprofile(None)

    def _event(self, frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            self.codes.add(frame.f_code)

    def way(self) -> Way:
        found: Way = {}
        for code in self.codes:
            path = Path(code.co_filename)
            for name, folder in PACKAGES.items():
                if path.is_relative_to(folder):
                    functions = found.setdefault(
                        f"{name}/{path.relative_to(folder).as_posix()}", []
                    )
                    if not code.co_name.startswith("<"):  # <lambda>, <listcomp>, ..
                        functions.append(f"{code.co_name}:{code.co_firstlineno}")
        return {file: sorted(found[file]) for file in sorted(found)}


def main(args: argparse.Namespace) -> None:
    show(f"one DREAM step of {args.config}", step_way(args.config), args.list)
    show(f"one sampling call of the bundled model, {SIDE}x{SIDE}", call_way(), args.list)


def show(title: str, way: Way, functions: bool) -> None:
    print(f"{title}: {len(way)} files, {sum(map(len, way.values()))} functions")
    for file, names in way.items():
        print(f"    {file:44}{len(names):4}" + (f"  {', '.join(names)}" if functions else ""))


def step_way(config: str = CONFIG) -> Way:
    """A step with DREAM of a run that trains as `config` says, one sample a batch."""
    recorder, ended = Recorder(), 0

    def optimizer_has_stepped(*_) -> None:
        nonlocal ended
        recorder.stop()
        ended += 1
        if ended == 2:
            recorder.start()

    with tempfile.TemporaryDirectory() as name:
        run, folder = load_config(config), Path(name)
        Image.fromarray(picture(run.data.patch + 32, 0)).save(folder / "0.png")
        run = load_config(
            config,
            [
                "loss.strength=1",
                "loss.lpips=0",
                "loss.lpips_vgg=0",
                "lpips_weights=null",
                f"data.train=[{folder}]",
                "data.val=[]",
                "data.cache_latents=0",
                "train.batch_size=1",
                "train.precision=fp32",  # the way is the same; bf16 is slow on an older CPU
                "train.compile=false",
                "train.workers=0",
                f"train.steps={STEPS}",
                f"train.log_every={STEPS}",
                f"train.save_every={STEPS}",
            ],
        )
        hook = register_optimizer_step_post_hook(optimizer_has_stepped)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                train(run, folder / "run")
        finally:
            recorder.stop()
            hook.remove()
    return recorder.way()


def call_way() -> Way:
    """The second picture that the bundled model enlarges, with its own settings, on the CPU."""
    upscaler, recorder = Upscaler.from_pretrained(device="cpu"), Recorder()
    upscaler(picture(SIDE, 0))
    recorder.start()
    try:
        upscaler(picture(SIDE, 1))
    finally:
        recorder.stop()
    return recorder.way()


def picture(side: int, seed: int) -> np.ndarray:
    """Noise, uint8 [side,side,3]."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
