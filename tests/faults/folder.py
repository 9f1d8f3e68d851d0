"""A folder of N pictures, one in twenty damaged, upscaled by the tool's own loop, killed and continued.

A child process works through the folder with `skip_existing` and is killed by SIGKILL at random
times, KILLS times; the last one comes to the end. Then every good picture must have a whole result
with the right pixels, every bad one must be named in the report, none of them may have a result,
and no draft may be left. The model is a stub that repeats pixels.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from faults.pictures import corpus
from faults.runner import Tally
from ldm_dream.data.images import Image, ImageError, read_image
from ldm_dream.upscaling.folder import Work, upscale_all, write_report
from ldm_dream.upscaling.planning import check_places, plan_jobs
from ldm_dream.upscaling.sizes import Size

BAD_SHARE = 20
KINDS = ("base.jpg", "gray.png", "rgba.png", "lossy.webp", "raw.tif", "palette.gif", "rgb.bmp")
KILLS = 12


def run(n: int, seed: int) -> Tally:
    with tempfile.TemporaryDirectory() as folder:
        return kill_and_continue(Path(folder), n, seed, KILLS)


def kill_and_continue(folder: Path, n: int, seed: int, kills: int) -> Tally:
    source, out, chance = folder / "in", folder / "out", random.Random(seed)
    make(source, n, seed)
    ends = [
        work_in_child(source, out, results, chance.uniform(0, 0.02))
        for results in (*sorted(chance.sample(range(1, n // 2), kills)), None)
    ]
    tally = judge(source, out, folder / "report.json")
    tally.verdicts["kills"] = ends.count(-signal.SIGKILL)  # a child may end before its kill
    if ends[-1] != 0:
        tally.faults.append((n, f"the last process ended with {ends[-1]}"))
    return tally


def work_in_child(source: Path, out: Path, results: int | None, seconds: float) -> int | None:
    """Killed some seconds after that many results are there; None: it works to the end. -> its exit
    status, negative by a signal.
    """
    context = multiprocessing.get_context("spawn")  # a fork would lack the threads of libvips
    child = context.Process(target=work, args=(source, out, out.with_name("report.json")))
    child.start()
    while results is not None and child.is_alive():
        if out.is_dir() and sum(not path.name.startswith(".") for path in out.iterdir()) >= results:
            time.sleep(seconds)
            child.kill()
            break
        time.sleep(0.002)
    child.join()
    return child.exitcode


def double(image: Image) -> Image:
    alpha = None if image.alpha is None else image.alpha.repeat(2, 0).repeat(2, 1)
    return replace(image, pixels=image.pixels.repeat(2, 0).repeat(2, 1), alpha=alpha)


def make(source: Path, n: int, seed: int) -> None:
    """Pictures 0000.jpg, 0001.png ...; the bad ones are cut somewhere in the middle."""
    source.mkdir()
    chance = random.Random(seed)
    bad = set(chance.sample(range(n), max(1, n // BAD_SHARE)))
    for number in range(n):
        kind = chance.choice(KINDS)
        data = corpus()[kind]
        if number in bad:
            data = data[: chance.randrange(0, len(data) * 3 // 4)]
        mark = "bad" if number in bad else "good"
        (source / f"{number:04}-{mark}{Path(kind).suffix}").write_bytes(data)


def work(source: Path, out: Path, report: Path) -> None:
    plan = plan_jobs(source, out)
    check_places(plan, report)
    results = list(upscale_all(plan.jobs, Work(double, Size(2), skip_existing=True)))
    write_report(report, {}, plan, results)


def judge(source: Path, out: Path, report: Path) -> Tally:
    tally = Tally()
    plan = plan_jobs(source, out)
    named = {
        Path(entry["source"]).name
        for entry in json.loads(report.read_text())["pictures"]
        if entry["status"] == "failed" and Path(entry["source"]).name in entry["error"]
    }
    for number, job in enumerate(plan.jobs):
        if "-bad" in job.source.name:
            is_right = job.source.name in named and not job.target.exists()
        else:
            is_right = job.source.name not in named and is_whole(job.source, job.target)
        if is_right:
            tally.verdicts["named" if "-bad" in job.source.name else "whole"] += 1
        else:
            tally.faults.append((number, f"{job.source.name}: wrong end"))
    extra = {path.name for path in out.iterdir()} - {job.target.name for job in plan.jobs}
    tally.faults += [(len(plan.jobs), f"{name}: left behind") for name in sorted(extra)]
    return tally


def is_whole(source: Path, target: Path) -> bool:
    try:
        made, wanted = read_image(target).pixels, double(read_image(source)).pixels
    except ImageError:
        return False
    tolerance = 8 if target.suffix in (".jpg", ".webp") else 0
    difference = np.abs(made.astype(int) - wanted).mean() if made.shape == wanted.shape else 999
    return bool(difference <= tolerance)
