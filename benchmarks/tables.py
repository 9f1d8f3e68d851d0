"""Rows of results as tables in Markdown, the ones that a benchmark prints and that documents hold.

Rows are a history: of what was measured twice the later run counts. Rows of one commit and one
machine stand in one table, under a line that names both and over the commands that measured it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from .gain_table import gained, trained
from .paper_rows import sampled
from .peers_table import differences, peers
from .record import Measured, Row, append, complete
from .speed_tables import data, engines, kernels, number, parts, sampling
from .variants_table import variants

OFFICIAL = ("official fp32", "official bf16", "official compiled")  # recipes beside ours
NOTHING = "No rows yet."  # in place of a table
QUALITY_DIGITS = {"psnr_y": 3, "ssim_y": 4, "lpips": 4}


class Table(NamedTuple):
    benchmark: str
    lines: Callable[[list[Row]], list[list[str]]]  # rows of one place -> head, then one line each
    about: str  # what the columns say
    wanted: Callable[[Row], bool] = lambda _: True  # of the benchmark's rows
    runs: bool = False  # a line is made of all rows of one run, not of single rows
    common: Callable[[Row], str] | None = None  # what only rows of one table have in common
    spans: bool = False  # one table of rows of all commits and machines


# ------------------------------------------------------------------------------------- any table


def finish(args: argparse.Namespace, benchmark: str, measured: list[Measured]) -> None:
    """What a benchmark does with what it has measured: its rows appended, its tables printed."""
    rows = complete(args, benchmark, measured)
    append(args.json, rows)
    for name, table in TABLES.items():
        if table.benchmark == benchmark and not (found := text(name, rows)).endswith(NOTHING):
            print(f"\n{found}")


def text(name: str, rows: list[Row]) -> str:
    """The table of this name over all rows of its benchmark; of each place one, the newest first."""
    table = TABLES[name]
    places: dict[str, list[Row]] = {}
    for row in newest(filter(table.wanted, rows), table.runs):
        places.setdefault("" if table.spans else place(row, table), []).append(row)
    if table.spans and places:
        found = places.pop("")
        places["\n".join(dict.fromkeys(place(row, table) for row in found))] = found
    parts = [table.about]
    for where, found in sorted(places.items(), key=lambda item: item[1][-1]["date"], reverse=True):
        head, *lines = table.lines(found)
        if not lines:
            continue
        commands = dict.fromkeys(row["command"] for row in found if row["command"])
        again = "\n".join(["```bash", *commands, "```"])
        parts += [where, grid(head, lines), *([again] if commands else [])]
    return "\n\n".join(parts if len(parts) > 1 else [*parts, NOTHING])


def newest(rows: Iterable[Row], runs: bool) -> list[Row]:
    """Rows that no later one replaces: one of the same subject, variant and settings, on a GPU or
    not. With `runs` all rows of a run replace all of another: its variants differ in precision.
    """

    def key(row: Row) -> str:
        settings, variant = row["settings"], row["variant"]
        if runs:
            settings, variant = {**settings, "precision": None}, None
        return json.dumps(
            [row["subject"], variant, settings, row["machine"]["gpu"]], sort_keys=True
        )

    rows = list(rows)
    last = {key(row): row["date"] for row in sorted(rows, key=lambda row: row["date"])}
    return [row for row in rows if row["date"] == last[key(row)]]


def run_of(row: Row) -> tuple:
    """What rows of one run have in common."""
    return row["date"], row["commit"], row["subject"], row["command"]


def place(row: Row, table: Table) -> str:
    """The line over a table: what all its rows have in common."""
    machine = row["machine"]
    cpu = machine["cpu"] + (f" ({machine['vectors']})" if machine["vectors"] else "")
    parts = [machine["gpu"], cpu, f"{machine['threads']} threads", f"torch {machine['torch']}"]
    if machine["python"]:
        parts.append(f"Python {machine['python']}")
    changed = " with changes" if row["dirty"] else ""
    parts.append(f"commit {row['commit']}{changed}")
    common = f"{table.common(row)}; " if table.common else ""
    return f"{common}{', '.join(filter(None, parts))}:"


def grid(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns are also straight in a terminal."""
    cells = [list(head), *map(list, lines)]
    widths = [max(3, *(len(line[i]) for line in cells)) for i in range(len(head))]

    def joined(line: list[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(line, widths))
        return f"| {' | '.join(padded)} |"

    rule = f"|{'|'.join('-' * (width + 2) for width in widths)}|"
    return "\n".join([joined(cells[0]), rule, *map(joined, cells[1:])])


def asked(row: Row) -> str:
    """Config and what --set changed in it, as code spans."""
    return " ".join(f"`{word}`" for word in (row["subject"], *row["settings"]["set"]))


# ----------------------------------------------------------------------------------- train-step


def runs(rows: list[Row]) -> list[dict[str, Row]]:
    """Runs, each variant -> row, in the order of config and settings."""
    found: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(run_of(row), {})[row["variant"]] = row
    return sorted(found.values(), key=lambda run: asked(run["ours DREAM"]))


def ratio(a: Row, b: Row) -> str:
    """a / b: average over the repetitions, in which both took turns, then the least and the most."""
    average = statistics.fmean if a["settings"]["average"] == "mean" else statistics.median
    pairs = zip(a["metrics"]["repetitions"], b["metrics"]["repetitions"], strict=True)
    found = [x / y for x, y in pairs]
    kinds = [row["settings"]["precision"] for row in (a, b)]
    label = "" if kinds[0] == kinds[1] else f", {kinds[0]} / {kinds[1]}"
    return f"{average(found):.3f} ({min(found):.3f} to {max(found):.3f}){label}"


def cost(run: dict[str, Row]) -> list[str]:
    """DREAM / standard of ours: time, memory."""
    dream, standard = run["ours DREAM"], run["ours standard"]
    memory = dream["metrics"]["tensors_mib"] / standard["metrics"]["tensors_mib"]
    return [ratio(dream, standard), f"{memory:.3f}"]


def train_step(rows: list[Row]) -> list[list[str]]:
    head = ["config", "network", *(f"{name}, s" for name in OFFICIAL), "ours, s"]
    head += [f"ours / {name}" for name in OFFICIAL]
    lines = [head + ["DREAM / standard: time", "memory"]]
    for run in runs(rows):
        ours, rivals = run["ours DREAM"], [run[f"{name} DREAM"] for name in OFFICIAL]
        kind = ours["settings"]["precision"] + (", compiled" if ours["settings"]["compile"] else "")
        line = [asked(ours), f"{ours['metrics']['parameters'] / 1e6:.1f} M"]
        line += [number(rival["metrics"], "seconds") for rival in rivals]
        line += [f"{number(ours['metrics'], 'seconds')} ({kind})"]
        line += [ratio(ours, rival) for rival in rivals]
        lines.append(line + cost(run))
    return lines


def dream_cost(rows: list[Row]) -> list[list[str]]:
    lines = [["config", "ours", "standard, s", "DREAM, s", "DREAM / standard: time", "memory"]]
    for run in runs(rows):
        seconds = [number(run[f"ours {x}"]["metrics"], "seconds") for x in ("standard", "DREAM")]
        dream = run["ours DREAM"]
        lines.append([asked(dream), dream["settings"]["precision"], *seconds, *cost(run)])
    return lines


def is_profiled(row: Row) -> bool:
    return any(name.startswith("share/") for name in row["metrics"])


def step_profile(rows: list[Row]) -> list[list[str]]:
    kinds = [name for name in rows[0]["metrics"] if name.startswith("share/")]
    lines = [["config", "of peak", *(kind.removeprefix("share/") for kind in kinds)]]
    for row in rows:
        metrics = row["metrics"]
        speed = metrics["flop"] / metrics["seconds"] / metrics["conv_flop_per_second"]
        shares = [f"{metrics[kind]:.1%}" for kind in kinds]
        lines.append([asked(row), f"{speed:.0%}", *shares])
    return lines


# -------------------------------------------------------------------------------------- the others


def pictures(row: Row) -> str:
    return ", ".join(f"`{folder}`" for folder in row["settings"]["pictures"])


def cropped(row: Row) -> str:
    settings = row["settings"]
    return f"{pictures(row)}, centre crop {settings['crop']}, colour fix {settings['color_fix']}"


def steps_quality(rows: list[Row]) -> list[list[str]]:
    lines = [["model", "dtype", "steps", "PSNR-Y", "SSIM-Y", "LPIPS"]]
    for row in rows:
        figures = [number(row["metrics"], name, n) for name, n in QUALITY_DIGITS.items()]
        steps = str(row["settings"]["steps"] or "")
        lines.append([f"`{row['subject']}`", row["settings"]["dtype"], steps, *figures])
    return lines


def worn(row: Row) -> str:
    settings = row["settings"]
    return f"{settings['count']} of {pictures(row)}, centre crop {settings['crop']}"


def wear(rows: list[Row]) -> list[list[str]]:
    prefix = "psnr_y/"
    wears = [name.removeprefix(prefix) for name in rows[0]["metrics"] if name.startswith(prefix)]
    lines = [["model", "dtype", "steps", "colour fix", *wears]]
    for row in rows:
        metrics, asked_for = row["metrics"], row["settings"]
        cells = [
            " / ".join((number(metrics, f"lpips/{w}"), number(metrics, f"psnr_y/{w}", 2)))
            for w in wears
        ]
        default = "" if row["subject"] == "bicubic" else "the model's"
        steps = str(asked_for["steps"] or default)
        about = [asked_for["dtype"], steps, asked_for["color_fix"]]
        lines.append([f"`{row['subject']}`", *about, *cells])
    return lines


def autoencoder(rows: list[Row]) -> list[list[str]]:
    head = ["model", "pictures", "dtype", *("PSNR-Y", "SSIM-Y", "LPIPS"), "2 px cut"]
    lines = [[*head, "worst PSNR-Y", "codes used", "s per picture"]]
    for row in rows:
        asked_for, metrics = row["settings"], row["metrics"]
        named = f", names with {asked_for['match']}" if asked_for["match"] else ""
        codes = f"{metrics['codes_used']} of {metrics['codes']}" if "codes" in metrics else ""
        found = [number(metrics, name, n) for name, n in {**QUALITY_DIGITS, "lpips_cut": 4}.items()]
        where = f"{metrics['pictures']} of {pictures(row)}{named}"
        line = [f"`{row['subject']}`", where, asked_for["dtype"], *found]
        lines.append([*line, number(metrics, "worst_psnr_y"), codes, number(metrics, "seconds")])
    return lines


def data_wait(rows: list[Row]) -> list[list[str]]:
    lines = [["config", "pictures", "workers", "nice", "training threads", "s a step", "waits"]]
    for row in rows:
        settings, metrics = row["settings"], row["metrics"]
        names = ("state", "workers", "nice", "training_threads")
        lines.append(
            [asked(row), *(str(settings[name]) for name in names)]
            + [number(metrics, "seconds"), f"{metrics['waits']:.1%}"]
        )
    return lines


def systems(rows: list[Row]) -> list[list[str]]:
    lines = [["system", "config", "steps", "first loss", "last loss", "resumed at", "upscaled to"]]
    for row in rows:
        metrics = row["metrics"]
        sizes = zip(metrics["widths"], metrics["heights"])
        lines.append(
            [row["variant"], f"`{row['subject']}`", str(row["settings"]["steps"])]
            + [number(metrics, "first_loss"), number(metrics, "last_loss")]
            + [str(metrics["resumed_at"]), ", ".join(f"{w}x{h}" for w, h in sizes)]
        )
    return lines


SPREAD = "average of the repetitions in which both took turns (least to most)"
TABLES = {
    "train-step": Table(
        "train-step",
        train_step,
        "A training step with DREAM: ours beside the official recipe in fp32, under bf16 autocast, "
        f"and that compiled by torch.compile; all in one run. Ratios of time: {SPREAD}; where the "
        "two differ in precision it says so. Last, what DREAM costs ours: time and tensors' memory.",
        wanted=lambda row: row["settings"]["official"] and "repetitions" in row["metrics"],
        runs=True,
    ),
    "dream-cost": Table(
        "train-step",
        dream_cost,
        f"Our training step without and with DREAM. Ratio of time: {SPREAD}.",
        wanted=lambda row: not row["settings"]["official"] and "repetitions" in row["metrics"],
        runs=True,
    ),
    "step-profile": Table(
        "train-step",
        step_profile,
        "Where our DREAM step's wall time goes (`--profile`), and its FLOP/s against those of the "
        "best 3x3 convolution of the same run.",
        wanted=is_profiled,
    ),
    "kernels": Table(
        "kernels",
        kernels,
        "Medians of alternating repetitions. Where ours has no time on a CPU, the op is there its "
        "reference, which `eager` measures.",
    ),
    "sampling": Table("sampling", sampling, "A picture upscaled, end to end; medians."),
    "parts": Table(
        "parts",
        parts,
        "Where the time of an upscaled picture goes, and each part's FLOP/s against those of the "
        "best 3x3 convolution of the same run; medians.",
    ),
    "engines": Table(
        "engines",
        engines,
        "Encoder, network and decoder of one picture by several engines in turns; medians.",
    ),
    "steps-quality": Table(
        "steps-quality",
        steps_quality,
        "Quality against sampling steps; means over the pictures.",
        common=cropped,
    ),
    "data": Table(
        "data",
        data,
        "Training samples a second, and what a batch of `--batch` takes, beside the step that an "
        "H100 was reckoned to take for it (`--step-seconds`; not measured).",
    ),
    "data-wait": Table(
        "data-wait",
        data_wait,
        "A training step on pictures of DIV2K's size, and the share of it for which data is waited "
        "for; medians of turns.",
    ),
    "wear": Table(
        "wear",
        wear,
        "LPIPS / PSNR-Y on pictures made small and worn in four ways (`benchmarks/wear.py`); means.",
        common=worn,
    ),
    "dream-gain": Table(
        "dream-gain",
        gained,
        "The same recipe without and with DREAM, trained for equal time: means over seeds and "
        "pictures. Interval: a paired bootstrap over both; one that holds 0 shows no difference, and "
        "of few seeds it is too narrow.",
        common=lambda row: f"{asked(row)}, {trained(row)}; {worn(row)}",
    ),
    "paper-latent": Table(
        "paper",
        sampled,
        "The paper's latent system (ResShift's network, DDPM, eps) without DREAM (standard) and with "
        "it (p = 1), trained for equal time: means of seeds and pictures, and the difference with its "
        "95 % interval over both. LPIPS and the Frechet distance (EfficientNet-lite0; not FID) are "
        "better where they are lower.",
        wanted=lambda row: row["subject"] == "resshift-ddpm" and row["settings"]["scale"] == "cpu",
        spans=True,
    ),
    "peers": Table(
        "peers",
        peers,
        "Published networks and ours on the same pictures (`benchmarks/peers.py`): means over the "
        "pictures, medians of seconds; memory beyond that of the bare process.",
    ),
    "peers-difference": Table(
        "peers",
        differences,
        "Ours minus the best peer in each score, and minus two made for photos: the mean over the "
        "pictures, and its interval by a paired bootstrap. One that holds 0 shows no difference.",
    ),
    "variants": Table(
        "variants",
        variants,
        "A recipe trained with one loss after the other for equal time, and sampled in the most steps: "
        "means over seeds and pictures. The last columns compare each loss with the plain one at the "
        "same PSNR-Y, on the plain one's curve over its numbers of sampling steps (below 0: better); "
        "interval: a bootstrap over seeds and pictures, too narrow for few seeds.",
        common=lambda row: f"{asked(row)}; {worn(row)}",
        spans=True,
    ),
    "autoencoder": Table("autoencoder", autoencoder, "Reconstruction by the autoencoder alone."),
    "systems": Table(
        "systems",
        systems,
        "Every system trained at CPU size, killed and resumed at the half, then asked to upscale a "
        "picture of 50x70 pixels. Losses are means over the first and the last tenth of the steps.",
    ),
}
