"""Every benchmark that a fresh clone can run, one after another, each in a process of its own, into
one report to paste.

Short ones first, so that the kernels, which compile for longest, have what is left of the minutes.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from .record import machine, tree

PHOTO = "tools/assets"
SR3 = ["train-step", "--config", "configs/sr3/face-8x-dream.yaml"]
IDM = ["train-step", "--config", "configs/idm/face-8x-dream.yaml", "--set", "data.scales=null"]
RESSHIFT = ["train-step", "--config", "configs/resshift/ddpm-4x-dream.yaml"]
QUALITY = [
    ["steps-quality", "-n", "dream-latent-x4-tiny", "--hr", PHOTO, "--steps", "1", "2", "4"],
    ["autoencoder", "--hr", PHOTO, "--match", "coffee"],
]
COMMANDS = {
    "cpu": [
        ["sampling", "--steps", "1", "2", "4"],
        ["parts"],
        *QUALITY,
        ["train-step", "--ours-only"],
        [*SR3, "--set", "network.model_channels=32", "train.precision=bf16"],
        ["kernels"],
    ],
    "cuda": [
        [
            "sampling",
            "--steps",
            "1",
            "2",
            "4",
            "--batch-size",
            "1",
            "8",
            "--tile",
            "64",
            "--size",
            "512",
        ],
        [
            "sampling",
            "--steps",
            "1",
            "2",
            "4",
            "--batch-size",
            "8",
            "--tile",
            "64",
            "--size",
            "512",
            "--compile",
        ],
        ["parts", "--size", "256"],
        *QUALITY,
        [*SR3, "--set", "train.precision=bf16", "--compile"],
        [*IDM, "train.precision=bf16", "train.batch_size=16", "--compile"],
        [*RESSHIFT, "--set", "train.precision=bf16", "train.batch_size=8", "--compile"],
        # decides IN_COMPILED of dream_kernels/group_norm_silu.py
        ["kernels", "--op", "norm_in_block"],
        ["kernels"],
    ],
}


def main(args: argparse.Namespace) -> None:
    """Stops what runs when the minutes are over, and says so: what was measured until then is in
    the report.
    """
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    report, commands = folder / "report.md", COMMANDS[args.device]
    begun, failed = time.monotonic(), []
    where = machine(args.device)
    text = [
        f"# ldm_dream on {where['gpu'] or where['cpu']}",
        "",
        f"torch {where['torch']}, Python {where['python']}, commit {tree().commit}, "
        f"{where['threads']} threads, vector extensions {where['vectors']}",
        "",
    ]
    for words in commands:
        command = [
            "-m",
            "benchmarks",
            *words,
            "--device",
            args.device,
            "--json",
            str(folder / f"{words[0]}.jsonl"),
        ]
        print(f"python {' '.join(command)}", flush=True)
        start = time.monotonic()
        status, output, errors = run(command, begun + 60 * args.minutes - start)
        text += [
            f"## python {' '.join(command)}",
            "",
            "```",
            output.strip(),
            "```",
            "",
            f"{time.monotonic() - start:.0f} s",
            "",
        ]
        if status != 0:
            failed.append(words[0])
        if status is None:
            text += [f"Stopped: the {args.minutes:g} minutes were over; --minutes gives more.", ""]
        elif status:
            text += [f"Failed with status {status}:", "", "```", errors.strip()[-2000:], "```", ""]
        # after each: a report that is cut off holds what was measured
        report.write_text("\n".join(text), encoding="utf-8")
    print(
        f"{report}: {len(commands) - len(failed)} of {len(commands)} benchmarks in {time.monotonic() - begun:.0f} s"
    )
    if failed:
        raise SystemExit(f"failed or stopped: {', '.join(failed)}; see {report}")


def run(command: list[str], seconds: float) -> tuple[int | None, str, str]:
    """Python with these arguments, for so many seconds at most -> status (None: stopped), stdout,
    stderr.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        [sys.executable, "-u", *command], start_new_session=True, **pipes
    ) as process:
        try:
            output, errors = process.communicate(timeout=max(seconds, 0))
            return process.returncode, output, errors
        except BaseException as error:  # also Ctrl-C, which a session of its own does not get
            os.killpg(process.pid, signal.SIGKILL)  # and the processes that it has started
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return None, *process.communicate()
