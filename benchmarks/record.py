"""Rows of results: printed by the benchmark, appended to a JSON-lines file with what is needed to
read them later.
"""

from __future__ import annotations

import json
import platform
import subprocess
import time
from pathlib import Path

import torch

import ldm_dream


def append(path: str | None, rows: list[dict]) -> None:
    if path is None:
        return
    about = {
        "commit": commit(),
        "ldm_dream": ldm_dream.__version__,
        "torch": torch.__version__,
        "machine": machine(rows[0].get("device", "cpu") if rows else "cpu"),
        "threads": torch.get_num_threads(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row | about) + "\n" for row in rows)


def machine(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else _cpu()


def commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
