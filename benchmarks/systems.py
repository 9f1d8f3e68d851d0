"""Does every system learn, resume and upscale? 200 steps of each CPU-size config through the tools,
as a user would run them.

A run is killed (SIGKILL) once its checkpoint at half of the steps is there, and started again by
the same command. The loss is the mean over the first and the last tenth of the steps. The finished
model upscales a picture of 50x70 pixels; IDM also by 2.5.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from ldm_dream.errors import UserError

from .record import Measured
from .tables import finish
from .trainings import python

SYSTEMS = {  # name -> config, scales to upscale by
    "sr3": ("configs/tiny/sr3-dream.yaml", (4,)),
    "regression": ("configs/tiny/regression.yaml", (4,)),
    "idm": ("configs/tiny/idm-dream.yaml", (4, 2.5)),
    "ldm": ("configs/tiny/ldm-dream.yaml", (4,)),
    "resshift": ("configs/tiny/dream-latent-x4-tiny.yaml", (4,)),
    "flow": ("configs/tiny/flow-dream.yaml", (4,)),
}
SIZE = (50, 70)  # of the picture to upscale, width and height


def main(args) -> None:
    if unknown := set(args.systems or ()) - SYSTEMS.keys():
        raise UserError(
            f"--systems {' '.join(sorted(unknown))}: not known; choose of {', '.join(SYSTEMS)}."
        )
    rows = []
    for name in args.systems or SYSTEMS:
        config, scales = SYSTEMS[name]
        with tempfile.TemporaryDirectory() as folder:
            metrics = measure(config, scales, args.steps, Path(folder))
        print(f"{name}: loss {metrics['first_loss']:.4f} to {metrics['last_loss']:.4f}", flush=True)
        rows.append(Measured(config, name, {"steps": args.steps}, metrics))
    finish(args, "systems", rows)


def measure(config: str, scales: tuple[float, ...], steps: int, folder: Path) -> dict:
    """Raises SystemExit with the output of a tool that failed or did not resume."""
    half, run_dir = steps // 2, folder / "run"
    train = [
        "tools/train.py",
        config,
        "--run-dir",
        str(run_dir),
        "--set",
        f"train.steps={steps}",
        f"train.save_every={half}",
    ]
    train += ["train.log_every=1", f"train.val_every={steps}"]
    kill_when_there(train, run_dir / "checkpoints" / f"step-{half:08d}")
    resumed = re.search(r"from step (\d+)", python(train))
    if not resumed or int(resumed[1]) != half:
        raise SystemExit(f"{config}: killed after step {half}, it did not go on from there.")
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    # by step: some came again after the kill
    losses = {row["step"]: row["diffusion"] for row in rows if "diffusion" in row}
    tenth = steps // 10
    first = statistics.mean(losses[step] for step in range(1, tenth + 1))
    last = statistics.mean(losses[step] for step in range(steps - tenth + 1, steps + 1))
    picture = folder / "picture.png"
    ramp = np.linspace(0, 255, SIZE[0] * SIZE[1] * 3).reshape(SIZE[1], SIZE[0], 3)
    Image.fromarray(ramp.astype(np.uint8)).save(picture)
    sizes = []
    for scale in scales:
        target = folder / f"x{scale}.png"
        python(
            [
                "tools/upscale.py",
                "-i",
                str(picture),
                "-o",
                str(target),
                "-n",
                str(run_dir / "model"),
                "-s",
                str(scale),
            ]
        )
        sizes.append(Image.open(target).size)
        if sizes[-1] != (round(SIZE[0] * scale), round(SIZE[1] * scale)):
            raise SystemExit(f"{config}: x{scale} made {sizes[-1]} of {SIZE}.")
    widths, heights = zip(*sizes)
    return {
        "first_loss": first,
        "last_loss": last,
        "resumed_at": int(resumed[1]),
        "widths": list(widths),
        "heights": list(heights),
    }


def kill_when_there(command: list[str], checkpoint: Path) -> None:
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([sys.executable, *command], stdout=output, stderr=output)
        while not checkpoint.exists():
            if process.poll() is not None:
                output.seek(0)
                raise SystemExit(
                    f"{' '.join(command)} ended before {checkpoint.name}:\n{output.read()}"
                )
            time.sleep(0.02)
        process.kill()
        process.wait()
