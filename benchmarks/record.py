"""Rows of results: one schema for all benchmarks, one JSON object a line, `results/BENCHMARK.jsonl`.

A row has exactly these names:
    benchmark  the command that measured it: train-step, kernels, ..
    subject    what was measured: a config, an op, a model
    variant    which of those that a run sets beside each other: "ours DREAM", "eager", "4 steps"
    settings   how it was asked for, name -> value
    metrics    what came out, name -> number, or numbers one a repetition or a picture; METRICS explains them
    command    measures it again; null: not noted at the time
    commit     of the tree, short; "unknown" outside git
    dirty      whether the tree had changes or new files then (results/ does not count)
    date       UTC, one for all rows that a run appends together
    machine    cpu, vectors (its vector extensions), threads, gpu (null: not used), torch, python;
               vectors and python are null where not noted at the time

In results/ `dirty` is false: what a row measured can be checked out. A changed tree may write
anywhere else.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ldm_dream.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
QUALITY = {
    "psnr_y": "dB, on Y, mean of the pictures",
    "ssim_y": "on Y",
    "psnr_rgb": "dB",
    "ssim_rgb": "",
    "lpips": "AlexNet; where its weights are at hand",
}
METRICS = {  # benchmark -> metric (a pattern) -> unit and meaning
    "train-step": {
        "seconds": "median of the repetitions; mean with loss.min_lam",
        "repetitions": "seconds of each, in the order in which variants took turns",
        "first_step_seconds": "with compiling, for which ours finds a warm cache",
        "cold_start_seconds": "the same with an empty cache",
        "tensors_mib": "most that tensors hold at once during a step",
        "resident_mib": "high-water mark of the process, on a CPU",
        "parameters": "of the network",
        "flop": "of convolutions, matrix products and attention in a rectified step",
        "conv_flop_per_second": "of the best 3x3 convolution in ours' precision, same run",
        "share/*": "of the step's wall time, by kind of operation",
    },
    "kernels": {
        "p20": "seconds, of the repetitions",
        "p50": "seconds",
        "p80": "seconds",
        "gb_per_second": "least possible traffic by p50",
        "peak_mib": "taken beyond the arguments",
    },
    "sampling": {
        "seconds": "a picture, median of the repetitions",
        "first_seconds": "of the first picture",
        "megapixels_per_second": "of the result",
    },
    "parts": {
        "seconds_per_megapixel": "of the result, median of the repetitions",
        "share": "of the whole time",
        "gflop_per_megapixel": "of convolutions, matrix products and attention",
        "flop_per_second": "the same",
        "conv_flop_per_second": "of the best 3x3 convolution in the same dtype, same run",
    },
    "engines": {
        "p20": "seconds, of the repetitions",
        "p50": "seconds",
        "p80": "seconds",
        "relative_error": "root mean square, beside PyTorch's in float32",
    },
    "steps-quality": QUALITY,
    "wear": {
        "psnr_y/*": "dB, on Y, mean of the pictures, of each wear",
        "lpips/*": "AlexNet; where its weights are at hand",
    },
    "dream-gain": {
        "steps": "of training; settings hold those with DREAM, in which time is equal",
        "step_seconds": "of a training step, measured before the first run",
        "psnr_y/*": "dB, on Y, of each picture, of each wear",
        "ssim_y/*": "on Y, of each picture",
        "lpips/*": "AlexNet, of each picture; where its weights are at hand",
        "lpips_cut/*": "likewise, without two rows and columns at the top and left",
        "dists/*": "VGG16, of each picture; where its weights are at hand",
        "lite0_distance/*": "EfficientNet-lite0, of each picture; where its package is at hand",
        "niqe/*": "of each picture's result alone",
        "consistency_x1e5/*": "of each picture",
        "frechet_*": "squared distance of all results from all originals, of each wear",
    },
    "peers": {
        "psnr_y": "dB, on Y, of each picture",
        "ssim_y": "on Y, of each picture",
        "lpips": "AlexNet, of each picture; where its weights are at hand",
        "lpips_cut": "likewise, without two rows and columns at the top and left",
        "dists": "VGG16, of each picture; where its weights are at hand",
        "lite0_distance": "EfficientNet-lite0, of each picture; where its package is at hand",
        "niqe": "of each picture's result alone",
        "consistency_x1e5": "of each picture",
        "frechet_*": "squared distance of all results from all originals",
        "seconds_per_megapixel": "of the result, of each repetition on the largest picture",
        "peak_mib": "most resident memory beyond what was held before the method was loaded",
    },
    "paper": {
        "training_steps": "that the weights have seen",
        "step_seconds": "of a training step, measured before the system's first run",
        "psnr_y": "dB, on Y, of each picture",
        "ssim_y": "on Y, of each picture",
        "lpips": "AlexNet, of each picture; where its weights are at hand",
        "lite0_distance": "EfficientNet-lite0, of each picture; where its package is at hand",
        "consistency_x1e5": "of each picture",
        "frechet_*": "squared distance of all results from all originals",
        "mse/*": "of the estimate of z0 in training or sampling at an index, of each picture",
        "lpips/*": "of that estimate, decoded, of each picture",
    },
    "variants": {
        "training_steps": "that take as long as the plain loss's",
        "step_seconds": "of a training step, measured before the first run",
        "psnr_y/*": "dB, on Y, of each picture, by steps of sampling",
        "lpips/*": "AlexNet, of each picture; where its weights are at hand",
        "lite0_distance/*": "EfficientNet-lite0, of each picture; where its package is at hand",
        "frechet_*": "squared distance of all results from all originals",
    },
    "autoencoder": {
        **QUALITY,
        "lpips_cut": "LPIPS without two rows and columns at the top and left",
        "seconds": "a picture",
        "pictures": "how many",
        "worst_psnr_y": "dB, of the worst picture",
        "codes_used": "codebook entries that some picture uses",
        "codes": "of so many",
    },
    "data": {
        "first_visit": "samples a second of pictures that are read for the first time",
        "not_kept": "likewise of pictures that are decoded at each visit",
        "kept": "likewise of pictures whose pixels are kept",
        "needed": "samples that a step takes a second, as --batch and --step-seconds say",
    },
    "data-wait": {
        "seconds": "a training step, median of the repetitions",
        "repetitions": "of each, in the order in which variants took turns",
        "waits": "share of that for which data was waited for, median",
    },
    "systems": {
        "first_loss": "mean over the first tenth of the steps",
        "last_loss": "mean over the last tenth",
        "resumed_at": "step from which it went on after the kill",
        "widths": "pixels of the enlarged pictures",
        "heights": "pixels",
    },
}
TYPES: dict[str, tuple[type, ...]] = {
    "benchmark": (str,),
    "subject": (str,),
    "variant": (str,),
    "settings": (dict,),
    "metrics": (dict,),
    "command": (str, type(None)),
    "commit": (str,),
    "dirty": (bool,),
    "date": (str,),
    "machine": (dict,),
}
MACHINE: dict[str, tuple[type, ...]] = {
    "cpu": (str,),
    "vectors": (str, type(None)),
    "threads": (int,),
    "gpu": (str, type(None)),
    "torch": (str,),
    "python": (str, type(None)),
}
# flag of /proc/cpuinfo -> name
VECTORS = {
    "avx2": "AVX2",
    "avx512f": "AVX512",
    "avx512_bf16": "AVX512-BF16",
    "amx_bf16": "AMX-BF16",
    "asimd": "NEON",
    "sve": "SVE",
    "bf16": "BF16",
}
LACKED_DTYPE = ("steps-quality", "wear")  # whose first rows do not hold it
Row = dict[str, Any]


class Measured(NamedTuple):
    """What a benchmark knows of a row; `complete` adds the rest."""

    subject: str
    variant: str
    settings: dict[str, Any]
    metrics: dict[str, Any]


def asked_for(subject: str, variant: str, settings: dict[str, Any]) -> str:
    """What a row answers, whatever dtype the machine chose."""
    asked = {name: value for name, value in settings.items() if name != "dtype"}
    return json.dumps([subject, variant, asked], sort_keys=True)


def answered(path: Path, counts: Callable[[Row], bool]) -> set[str]:
    """What the rows of a file answer, of those that count; nothing where there is no file."""
    rows = filter(counts, read(path)) if path.exists() else ()
    return {asked_for(row["subject"], row["variant"], row["settings"]) for row in rows}


def alike(rows: list[Row], names: Sequence[str]) -> list[Row]:
    """Rows of each subject whose settings of these names are those of its latest."""
    latest = {row["subject"]: _of(row, names) for row in sorted(rows, key=date)}
    return [row for row in rows if _of(row, names) == latest[row["subject"]]]


def date(row: Row) -> str:
    return row["date"]


def _of(row: Row, names: Sequence[str]) -> list:
    return [row["settings"].get(name) for name in names]


class Tree(NamedTuple):
    commit: str
    dirty: bool


# ------------------------------------------------------------------------------------------ writing


def complete(args: argparse.Namespace, benchmark: str, measured: list[Measured]) -> list[Row]:
    """Rows of the schema, of the run that is going on now."""
    about = {
        "command": command(sys.argv[1:]),
        **tree()._asdict(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(args.device),
    }
    return [{"benchmark": benchmark, **row._asdict(), **about} for row in measured]


def append(path: str | None, rows: list[Row]) -> None:
    """Add rows to a file, which is made if it is not there. Raises UserError as `check_target`."""
    if path is None:
        return
    check_target(path)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    with open(path, "ab", buffering=0) as file:  # in one call, which no signal cuts
        file.write(text.encode())


def check_target(path: str) -> None:
    """Raises UserError where rows of a changed tree would go into results/. Asked before a benchmark
    begins, and again before rows are written.
    """
    if tree().dirty and RESULTS in Path(path).resolve().parents:
        raise UserError(
            f"--json {path}: the working tree has changes that no commit holds, and rows in "
            f"{RESULTS.relative_to(ROOT)} come from clean trees only; commit first, or give a file elsewhere."
        )


@functools.cache
def tree() -> Tree:
    """Of the code that this process runs: as it was when this was first asked."""
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        changes = _git("status", "--porcelain", "--", ".", f":!{RESULTS.relative_to(ROOT)}")
    except (OSError, subprocess.CalledProcessError):
        return Tree("unknown", dirty=True)
    return Tree(commit, dirty=bool(changes))


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def command(words: list[str]) -> str:
    """What measures the same again; where its rows, runs and pictures went is no part of it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for place in ("--json", "--page", "--runs", "--sheet"):
        parser.add_argument(place)
    return shlex.join(["python", "-m", "benchmarks", *parser.parse_known_args(words)[1]])


def machine(device: str) -> dict[str, Any]:
    cpu, vectors = _cpu()
    return {
        "cpu": cpu,
        "vectors": vectors,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cpu() -> tuple[str, str]:
    """Name and vector extensions; as Python and torch name them where there is no /proc/cpuinfo."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    flags = fields.get("flags", fields.get("Features", "")).split()
    vectors = [name for flag, name in VECTORS.items() if flag in flags]
    return (
        fields.get("model name") or platform.processor() or platform.machine(),
        ", ".join(vectors) or torch.backends.cpu.get_cpu_capability(),
    )


# ------------------------------------------------------------------------------------------ reading


def read(path: Path) -> list[Row]:
    """Rows of a file. Raises UserError with file and line for one that is not of the schema."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); give one that --json has written."
        ) from None
    for number, line in enumerate(lines, 1):
        try:
            row: Any = json.loads(line)
        except ValueError:
            row = None
        if wrong := faults(row):
            raise UserError(
                f"{path}, line {number}: {wrong[0]}; give a file that --json has written."
            )
        rows.append(_with_dtype(row))
    return rows


def _with_dtype(row: Row) -> Row:
    """Of a row of LACKED_DTYPE that does not name its own: fp32 on a CPU, as was so then, else ""."""
    if row["benchmark"] in LACKED_DTYPE:
        then = "fp32" if row["machine"]["gpu"] is None else ""
        row["settings"] = {"dtype": then, **row["settings"]}
    return row


def faults(row: object) -> list[str]:
    """What keeps a row from being one of the schema; nothing if it is one."""
    if not isinstance(row, dict):
        return ["no JSON object"]
    if wrong := _wrong_names(row, TYPES, "row") + _wrong_names(
        row.get("machine"), MACHINE, "machine"
    ):
        return wrong
    known = METRICS.get(row["benchmark"])
    if known is None:
        return [f"benchmark {row['benchmark']!r} is none of {', '.join(METRICS)}"]
    found = []
    for name, value in row["metrics"].items():
        if not any(fnmatch(name, pattern) for pattern in known):
            found.append(f"metric {name!r} is not in METRICS")
        numbers = value if isinstance(value, list) and value else [value]
        if not all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in numbers):
            found.append(f"metric {name!r} is no number: {value!r}")
    return found if row["metrics"] else ["no metrics"]


def _wrong_names(found: object, types: dict[str, tuple[type, ...]], what: str) -> list[str]:
    if not isinstance(found, dict):
        return [f"{what} is no object"]
    if missing := types.keys() - found.keys():
        return [f"{what} lacks {', '.join(sorted(missing))}"]
    if extra := found.keys() - types.keys():
        return [f"{what} has {', '.join(sorted(extra))} too many"]
    wrong = [name for name, kinds in types.items() if not isinstance(found[name], kinds)]
    return [f"{what}: {name} is {found[name]!r}" for name in wrong]
