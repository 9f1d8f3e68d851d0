"""The claims of DREAM's paper (arXiv 2312.00210) as checks of the rows of `paper`: for each system
shown, not shown, or against, with the figures that say so.

Better or worse is said only where the 95 % interval of the difference, over seeds and pictures, leaves
out 0; of few seeds it is too narrow, and what one seed alone shows is said to be so. "No worse" in
LPIPS allows MARGIN. The Frechet distance, one number of all pictures, has to be no worse with every
seed; C7, a ratio of times, has no interval.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ldm_dream.errors import UserError

from .paper_rows import Models, Results, difference, gap, indices, signed
from .paper_systems import DISCREPANCY, DREAM, MAIN, STANDARD, STEPS, SYSTEMS, TIME, Point
from .record import read
from .tables import grid

MARGIN = 0.005
SHOWN, NOT_SHOWN, AGAINST, NO_ROWS = "shown", "not shown", "against", "not run"
ONE_SEED = "shown by one seed"


class Verdict(NamedTuple):
    word: str
    figures: str


def main(args: argparse.Namespace) -> None:
    rows = Path(args.rows)
    if not rows.exists():
        raise UserError(f"--rows {rows}: is not there; `paper --json {rows}` writes it.")
    found = lines(Results(read(rows), args.scale))
    print(grid(["claim", "system", "verdict", "figures"], found))


def lines(results: Results) -> list[list[str]]:
    return [
        [f"{name}: {text}", key, *check(results, key, system.sampling)]
        for name, (text, check) in CLAIMS.items()
        for key, system in SYSTEMS[results.scale].items()
    ]


def rises(results: Results, system: str, sampling: tuple[int, ...]) -> Verdict:
    """C1: PSNR and SSIM from standard over p = 3, 2, 1 to p = 0, of the seeds that all of them have."""
    order = [STANDARD, "p = 3", "p = 2", DREAM, "p = 0"]
    models = {arm: results.full(system, arm, sampling[-1]) for arm in order}
    seeds = set.intersection(*(set(found.by_seed) for found in models.values()))
    models = {arm: found.of(seeds) for arm, found in models.items()}
    words, figures = [], []
    for name in ("psnr_y", "ssim_y"):
        ends = difference(models["p = 0"], models[STANDARD], name)
        if ends is None:
            return Verdict(NO_ROWS, "")
        means = [statistics.fmean(found.values(name)) for found in models.values()]
        words.append(_word(ends.low > 0 and means == sorted(means), ends.high < 0))
        steps = ", ".join(f"{arm} {found.text(name)}" for arm, found in models.items())
        figures.append(f"{name}: {steps}; p = 0 minus standard {signed(ends, name)}")
    return _all(words, figures, len(seeds))


def no_worse(results: Results, system: str, sampling: tuple[int, ...]) -> Verdict:
    """C2: LPIPS and Frechet distance of p = 1, for equal time."""
    ours = results.full(system, DREAM, sampling[-1])
    plain = results.full(system, STANDARD, sampling[-1], TIME)
    return _compare(ours, plain, frechet=True)


def converges(results: Results, system: str, sampling: tuple[int, ...]) -> Verdict:
    """C3: half of the steps with p = 1 against all of them without."""
    half = results.at(system, DREAM, Point(0.5, STEPS, sampling[-1]))
    return _compare(half, results.full(system, STANDARD, sampling[-1]), psnr="no lower")


def samples(results: Results, system: str, sampling: tuple[int, ...]) -> Verdict:
    """C4: p = 1 in a tenth of the sampling steps, or the next number above, against standard in all."""
    few = min((n for n in sampling if 10 * n >= sampling[-1]), default=sampling[-1])
    ours = results.full(system, DREAM, few)
    return _compare(ours, results.full(system, STANDARD, sampling[-1], TIME), psnr="no lower")


def gaps_close(results: Results, system: str, sampling: tuple[int, ...]) -> Verdict:
    """C5: the estimate in sampling is nearer to that in training at every step that is looked at."""
    ours, plain = (gap(results.at(system, arm, DISCREPANCY)) for arm in MAIN[::-1])
    if not ours.by_seed or not plain.by_seed:
        return Verdict(NO_ROWS, "")
    found = [difference(ours, plain, index) for index in indices(plain)]
    smaller = sum(one is not None and one.high < 0 for one in found)
    larger = sum(one is not None and one.low > 0 for one in found)
    word = _word(smaller == len(found), larger > smaller)
    figures = f"smaller at {smaller} of {len(found)} steps, larger at {larger}"
    return _all([word], [figures], len(ours.by_seed.keys() & plain.by_seed.keys()))


def scales(results: Results, system: str, sampling: tuple[int, ...]) -> Verdict:
    """C6: PSNR and LPIPS of p = 1 at scales that no arm was trained for, for equal time."""
    others = SYSTEMS[results.scale][system].scales
    found = [
        _compare(
            results.full(system, DREAM, sampling[-1], STEPS, scale),
            results.full(system, STANDARD, sampling[-1], TIME, scale),
            psnr="higher",
        )
        for scale in others
    ]
    if not others or any(one.word == NO_ROWS for one in found):
        return Verdict(NO_ROWS, "" if others else "this system has one scale")
    figures = "; ".join(f"x{scale}: {one.figures}" for scale, one in zip(others, found))
    return Verdict(_least([one.word for one in found]), figures)


def costs(results: Results, system: str, sampling: tuple[int, ...]) -> Verdict:
    """C7: time of a training step over one without DREAM, of which the paper has 1.08 to 1.38."""
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
    "C6": ("at scales of 2, 3 and 5 PSNR is higher and LPIPS no worse", scales),
    "C7": ("a training step takes at most 1.38 of the time", costs),
}


def _compare(ours: Models, plain: Models, psnr: str = "", frechet: bool = False) -> Verdict:
    """LPIPS no worse; where asked for PSNR "no lower" or "higher", and the Frechet distance no worse."""
    lpips, gained = (difference(ours, plain, name) for name in ("lpips", "psnr_y"))
    seeds = ours.by_seed.keys() & plain.by_seed.keys()
    if lpips is None or gained is None:
        return Verdict(NO_ROWS, "")
    words = [_word(lpips.high <= MARGIN, lpips.low > MARGIN)]
    figures = [f"LPIPS {signed(lpips, 'lpips')}"]
    if psnr:
        is_shown = gained.low > 0 if psnr == "higher" else gained.low >= 0
        words.append(_word(is_shown, gained.high < 0))
        figures.append(f"PSNR-Y {signed(gained, 'psnr_y')}")
    if frechet:
        name = "frechet_efficientnet_lite0"
        pairs = list(zip(*(models.of(seeds).values(name) for models in (ours, plain))))
        if len(pairs) < len(seeds):
            return Verdict(NO_ROWS, f"without {name}")
        words.append(_word(all(a <= b for a, b in pairs), all(a > b for a, b in pairs)))
        figures.append(f"Frechet distance {ours.text(name)} against {plain.text(name)}")
    return _all(words, figures, len(seeds))


def _word(is_shown: bool, is_against: bool) -> str:
    return SHOWN if is_shown else AGAINST if is_against else NOT_SHOWN


def _all(words: list[str], figures: list[str], seeds: int) -> Verdict:
    """A claim of several scores holds where it holds for each of them."""
    word = _least(words)
    counted = f"{seeds} seed{'s' * (seeds != 1)}"
    return Verdict(
        ONE_SEED if word == SHOWN and seeds == 1 else word, "; ".join([counted, *figures])
    )


def _least(words: list[str]) -> str:
    return next(word for word in (AGAINST, NOT_SHOWN, ONE_SEED, SHOWN) if word in words)
