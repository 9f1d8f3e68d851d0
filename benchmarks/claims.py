"""The claims of DREAM's paper (arXiv 2312.00210) as checks of the rows of `paper`: for each system
shown, not shown, or against, with the figures that say so.

Better or worse is said only where the 95 % interval of the difference, over seeds and pictures, leaves
out 0. "No worse" in LPIPS allows MARGIN.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .paper_rows import Models, Results, difference, gap, indices, signed
from .paper_systems import DISCREPANCY, DREAM, MAIN, STANDARD, STEPS, SYSTEMS, TIME, Point
from .record import read
from .tables import grid

MARGIN = 0.005
SHOWN, NOT_SHOWN, AGAINST, NO_ROWS = "shown", "not shown", "against", "not run"


class Verdict(NamedTuple):
    word: str
    figures: str


def main(args: argparse.Namespace) -> None:
    print(grid(["claim", "system", "verdict", "figures"], lines(Path(args.rows), args.scale)))


def lines(rows: Path, scale: str) -> list[list[str]]:
    results = Results(read(rows) if rows.exists() else [], scale)
    return [
        [f"{name}: {text}", system, *check(results, system, SYSTEMS[scale][system].sampling)]
        for name, (text, check) in CLAIMS.items()
        for system in SYSTEMS[scale]
    ]


def rises(results: Results, system: str, sampling: tuple[int, ...]) -> Verdict:
    """C1: PSNR and SSIM from standard over p = 3, 2, 1 to p = 0."""
    order = [STANDARD, "p = 3", "p = 2", DREAM, "p = 0"]
    models = {arm: results.full(system, arm, sampling[-1]) for arm in order}
    if not all(found.by_seed for found in models.values()):
        return Verdict(NO_ROWS, "")
    words, figures = [], []
    for name in ("psnr_y", "ssim_y"):
        shared = _of_one_seed(models)
        means = [statistics.fmean(found.values(name)) for found in shared.values()]
        ends = difference(shared["p = 0"], shared[STANDARD], name)
        words.append(_word(ends.low > 0 and means == sorted(means), ends.high < 0) if ends else "")
        steps = ", ".join(f"{arm} {found.text(name)}" for arm, found in shared.items())
        figures.append(f"{name}: {steps}; p = 0 minus standard {signed(ends, name)}")
    return Verdict(_least(words), "; ".join(figures))


def no_worse(results: Results, system: str, sampling: tuple[int, ...]) -> Verdict:
    """C2: LPIPS and Frechet distance of p = 1, for equal time."""
    ours = results.full(system, DREAM, sampling[-1])
    plain = results.full(system, STANDARD, sampling[-1], TIME)
    return _compare(ours, plain, psnr=False)


def converges(results: Results, system: str, sampling: tuple[int, ...]) -> Verdict:
    """C3: half of the steps with p = 1 against all of them without."""
    half = results.at(system, DREAM, Point(0.5, STEPS, sampling[-1]))
    return _compare(half, results.full(system, STANDARD, sampling[-1]), psnr=True)


def samples(results: Results, system: str, sampling: tuple[int, ...]) -> Verdict:
    """C4: p = 1 in a tenth of the sampling steps, or the next number above, against standard in all."""
    few = min((n for n in sampling if 10 * n >= sampling[-1]), default=sampling[-1])
    ours = results.full(system, DREAM, few)
    return _compare(ours, results.full(system, STANDARD, sampling[-1], TIME), psnr=True)


def gaps_close(results: Results, system: str, sampling: tuple[int, ...]) -> Verdict:
    """C5: the estimate in sampling is nearer to that in training at every step that is looked at."""
    ours, plain = (gap(results.at(system, arm, DISCREPANCY), "mse") for arm in MAIN[::-1])
    if not ours.by_seed or not plain.by_seed:
        return Verdict(NO_ROWS, "")
    found = [difference(ours, plain, index) for index in indices(plain)]
    smaller = sum(one is not None and one.high < 0 for one in found)
    larger = sum(one is not None and one.low > 0 for one in found)
    word = _word(smaller == len(found), larger > smaller)
    return Verdict(word, f"smaller at {smaller} of {len(found)} steps, larger at {larger}")


def scales(results: Results, system: str, sampling: tuple[int, ...]) -> Verdict:
    """C6: PSNR and LPIPS of p = 1 at scales that neither arm was trained for, for equal time."""
    others = SYSTEMS[results.scale][system].scales
    found = [
        _compare(
            results.full(system, DREAM, sampling[-1], STEPS, scale),
            results.full(system, STANDARD, sampling[-1], TIME, scale),
            psnr=True,
        )
        for scale in others
    ]
    if not others or any(one.word == NO_ROWS for one in found):
        return Verdict(NO_ROWS, "" if others else "this system has one scale")
    figures = "; ".join(f"x{scale}: {one.figures}" for scale, one in zip(others, found))
    return Verdict(_least([one.word for one in found]), figures)


def costs(results: Results, system: str, sampling: tuple[int, ...]) -> Verdict:
    """C7: time of a training step, 1.08 to 1.38 of one without DREAM."""
    both = [results.full(system, arm, sampling[-1]) for arm in (DREAM, STANDARD)]
    if not all(models.by_seed for models in both):
        return Verdict(NO_ROWS, "")
    dream, plain = (statistics.fmean(models.values("step_seconds")) for models in both)
    return Verdict(_word(dream / plain <= 1.38, dream / plain > 1.38), f"{dream / plain:.2f}")


Check = Callable[[Results, str, tuple[int, ...]], Verdict]
CLAIMS: dict[str, tuple[str, Check]] = {
    "C1": ("PSNR and SSIM rise as p falls", rises),
    "C2": ("at p = 1, for equal time, LPIPS and Frechet distance are no worse", no_worse),
    "C3": ("half of the training steps reach standard's final quality", converges),
    "C4": ("a tenth of the sampling steps reaches standard's quality", samples),
    "C5": ("training and sampling differ less at every step", gaps_close),
    "C6": ("PSNR and LPIPS are better at scales of 2, 3 and 5 too", scales),
    "C7": ("a training step takes 1.08 to 1.38 of the time", costs),
}


def _compare(ours: Models, plain: Models, psnr: bool) -> Verdict:
    """LPIPS no worse, and where `psnr`, PSNR no lower; the Frechet distance, of a set, by its means."""
    lpips = difference(ours, plain, "lpips")
    if lpips is None:
        return Verdict(NO_ROWS, "")
    words = [_word(lpips.high <= MARGIN, lpips.low > MARGIN)]
    figures = [f"LPIPS {signed(lpips, 'lpips')}"]
    if psnr and (gained := difference(ours, plain, "psnr_y")):
        words.append(_word(gained.low >= 0, gained.high < 0))
        figures.append(f"PSNR-Y {signed(gained, 'psnr_y')}")
    name = "frechet_efficientnet_lite0"
    if not psnr and (pairs := list(zip(ours.values(name), plain.values(name)))):
        words.append(_word(all(a <= b for a, b in pairs), all(a > b for a, b in pairs)))
        figures.append(f"Frechet distance {ours.text(name)} against {plain.text(name)}")
    return Verdict(_least(words), "; ".join(figures))


def _of_one_seed(models: dict[str, Models]) -> dict[str, Models]:
    """All arms with the seeds that each of them has."""
    shared = set.intersection(*(set(found.by_seed) for found in models.values()))
    return {
        arm: Models({seed: found.by_seed[seed] for seed in found.by_seed if seed in shared})
        for arm, found in models.items()
    }


def _word(is_shown: bool, is_against: bool) -> str:
    return SHOWN if is_shown else AGAINST if is_against else NOT_SHOWN


def _least(words: list[str]) -> str:
    """A claim of several scores holds where it holds for each of them."""
    return next((word for word in (AGAINST, NOT_SHOWN, SHOWN) if word in words), NO_ROWS)
