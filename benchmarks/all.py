"""Every benchmark that a fresh clone can run, one after another, each in a process of its own, into one report to paste."""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

from .record import commit, machine

PHOTO = "tools/assets"
SR3 = ["train-step", "--config", "configs/sr3/face-8x_dream.yaml"]
IDM = ["train-step", "--config", "configs/idm/face-8x_dream.yaml", "--set", "data.scales=null"]
RESSHIFT = ["train-step", "--config", "configs/resshift/ddpm-x4_dream.yaml"]
COMMANDS = {
    "cpu": [
        ["kernels"],
        [*SR3, "--set", "network.model_channels=32", "train.precision=bf16"],
        ["train-step", "--ours-only"],
        ["sampling", "--steps", "1", "2", "4"],
        ["steps-quality", "-n", "dream-latent-x4-tiny", "--hr", PHOTO, "--steps", "1", "2", "4"],
        ["autoencoder", "--hr", PHOTO, "--match", "chelsea"],
    ],
    "cuda": [
        ["kernels"],
        [*SR3, "--set", "train.precision=bf16", "--compile"],
        [*IDM, "train.precision=bf16", "train.batch_size=16", "--compile"],
        [*RESSHIFT, "--set", "train.precision=bf16", "train.batch_size=8", "--compile"],
        ["sampling", "--steps", "1", "2", "4", "--batch-size", "1", "8", "--tile", "64", "--size", "512"],
        ["steps-quality", "-n", "dream-latent-x4-tiny", "--hr", PHOTO, "--steps", "1", "2", "4"],
        ["autoencoder", "--hr", PHOTO, "--match", "chelsea"],
    ],
}


def main(args: argparse.Namespace) -> None:
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / "report.md"
    begun, failed = time.monotonic(), []
    versions = f"torch {torch.__version__}, Python {platform.python_version()}, commit {commit()}"
    text = [f"# ldm_dream on {machine(args.device)}", "", f"{versions}, {torch.get_num_threads()} threads", ""]
    for words in COMMANDS[args.device]:
        command = ["-m", "benchmarks", *words, "--device", args.device, "--json", str(folder / f"{words[0]}.jsonl")]
        print(f"python {' '.join(command)}", flush=True)
        start = time.monotonic()
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
        text += [f"## python {' '.join(command)}", "", "```", done.stdout.strip(), "```", ""]
        text += [f"{time.monotonic() - start:.0f} s", ""]
        if done.returncode:
            failed.append(words[0])
            text += [f"Failed with status {done.returncode}:", "", "```", done.stderr.strip()[-2000:], "```", ""]
        report.write_text("\n".join(text), encoding="utf-8")  # after each: a report that is cut off holds what was measured
    print(f"{report}: {len(COMMANDS[args.device])} benchmarks in {time.monotonic() - begun:.0f} s")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; see {report}")
