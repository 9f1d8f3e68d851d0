"""Rows of `sampling`, `parts` and `engines` as lines of tables: what an upscaled picture costs."""

from __future__ import annotations

from typing import Any

from .record import Row


def number(metrics: dict[str, Any], name: str, digits: int = 3, factor: float = 1.0) -> str:
    """Empty where a row lacks it."""
    return f"{metrics[name] * factor:.{digits}f}" if name in metrics else ""


def sampling(rows: list[Row]) -> list[list[str]]:
    head = ["model", "LR picture", "dtype", "compiled", "steps", "tile", "tiles at a time"]
    lines = []
    for row in rows:
        asked_for, metrics = row["settings"], row["metrics"]
        size, compiled = asked_for["size"], "yes" if asked_for["compile"] else "no"
        lines.append(
            [f"`{row['subject']}`", f"{size}x{size}", asked_for["dtype"], compiled]
            + [str(asked_for["steps"] or "the model's"), str(asked_for["tile"] or "automatic")]
            + [str(asked_for["batch_size"])]
            + [number(metrics, "seconds"), number(metrics, "megapixels_per_second")]
            + [f"{1 / metrics['megapixels_per_second']:.3f}"]
        )
    return [[*head, "s per picture", "MP/s", "s per MP"], *lines]


def parts(rows: list[Row]) -> list[list[str]]:
    head = ["model", "LR picture", "dtype", "steps", "part", "s per MP", "share", "GFLOP per MP"]
    lines = [[*head, "GFLOP/s", "of the best convolution's"]]
    for row in rows:
        asked_for, metrics = row["settings"], row["metrics"]
        speed = [""]
        if "flop_per_second" in metrics:
            speed = [f"{metrics['flop_per_second'] / metrics['conv_flop_per_second']:.0%}"]
        lines.append(
            [f"`{row['subject']}`", f"{asked_for['size']}x{asked_for['size']}"]
            + [asked_for["dtype"], str(asked_for["steps"] or "the model's"), row["variant"]]
            + [number(metrics, "seconds_per_megapixel"), f"{metrics['share']:.0%}"]
            + [number(metrics, "gflop_per_megapixel", 1)]
            + [number(metrics, "flop_per_second", 1, 1e-9), *speed]
        )
    return lines


def engines(rows: list[Row]) -> list[list[str]]:
    eager = {
        (*_asked(row), row["variant"].split(", ")[0]): row["metrics"]["p50"]
        for row in rows
        if row["variant"].endswith(", eager")
    }
    lines = [["model", "LR picture", "dtype", "part", "engine", "s", "of eager's", "error"]]
    for row in rows:
        (part, engine), metrics = row["variant"].split(", "), row["metrics"]
        model, size, dtype = _asked(row)
        base = eager.get((model, size, dtype, part))
        lines.append(
            [f"`{model}`", f"{size}x{size}", dtype, part, engine, number(metrics, "p50")]
            + [f"{metrics['p50'] / base:.2f}" if base else ""]
            + [f"{metrics['relative_error']:.1e}"]
        )
    return lines


def _asked(row: Row) -> tuple[str, int, str]:
    return row["subject"], row["settings"]["size"], row["settings"]["dtype"]


def data(rows: list[Row]) -> list[list[str]]:
    ways = {"first_visit": "first visit", "not_kept": "not kept", "kept": "kept"}
    head = ["pictures", "patch", "workers", *(f"{way}, samples/s" for way in ways.values())]
    lines = [[*head, *(f"s a batch, {way}" for way in ways.values()), "s a step"]]
    for row in rows:
        settings, metrics = row["settings"], row["metrics"]
        seconds = [f"{settings['batch'] / metrics[way]:.2f}" for way in ways]
        lines.append(
            [row["subject"], str(settings["patch"]), str(settings["workers"])]
            + [f"{metrics[way]:.0f}" for way in ways]
            + [*seconds, f"{settings['step_seconds']:g}"]
        )
    return lines


def kernels(rows: list[Row]) -> list[list[str]]:
    cases: dict[tuple, dict[str, dict[str, float]]] = {}
    for row in rows:
        settings = row["settings"]
        case = (row["subject"], settings["mode"], "x".join(map(str, settings["shape"])))
        cases.setdefault((*case, settings["dtype"]), {})[row["variant"]] = row["metrics"]
    known = ("eager", "compiled", "ours")
    others = sorted({name for found in cases.values() for name in found} - set(known))
    names = [*known, *others]
    head = ["op", "pass", "shape", "dtype", *(f"{name}, ms" for name in names)]
    lines = [[*head, "eager / ours", "compiled / ours", "peak MiB: eager, compiled, ours"]]
    for case, found in cases.items():
        times = [number(found.get(name, {}), "p50", factor=1e3) for name in names]
        faster = ["", ""]
        if "ours" in found:
            faster = [f"{found[name]['p50'] / found['ours']['p50']:.2f}" for name in known[:2]]
        peaks = ", ".join(number(found.get(name, {}), "peak_mib", 1) or "-" for name in known)
        lines.append([*case, *times, *faster, peaks])
    return lines
