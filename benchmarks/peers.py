"""Published networks, bicubic and models of this project on the same pictures, in one run: every
score of every picture, seconds a megapixel of the result, and memory.

Pictures of Set5 and Set14 are cut to a multiple of four, those of `--hr` as `wear` cuts them. All
are made small and worn as `wear.py` says, whose random numbers are its own. Each method runs in a
process of its own, on so many threads. They take turns: picture by picture for the scores, which
also warms them up, then `--repetitions` times on the largest picture for the seconds. Memory is the
most that the process held beyond what it held before the method was loaded. A method that fails or
whose process dies is left out, with its rows; the others go on.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm_dream.config.data import DataConfig
from ldm_dream.data.image import from_tensor, to_uint8
from ldm_dream.data.images import check_writable, list_images, read_image
from ldm_dream.data.pairs import to_float
from ldm_dream.data.resize import size_of
from ldm_dream.data.validation import validation_pairs
from ldm_dream.errors import UserError
from ldm_dream.training.validation import GAP, write_grid
from ldm_dream.writing import check_outputs

from .choices import WEARS
from .peer_methods import SCALE, Method, Pixels, begin, memory, ours, peers, run
from .peer_processes import Processes, in_turns, process
from .peer_scores import Found, Scorer
from .record import ROOT, Measured
from .tables import finish
from .wear import worn

TEST_SETS = ROOT / "../shared/data/test_set5_set14/hr"
PUBLISHED = {
    "Set5": ("set5", ("clean",)),
    "Set14": ("set14", WEARS),
}  # start of names, wears


class Pictures(NamedTuple):
    name: str
    hr: list[Tensor]  # [1,3,H,W] in [-1, 1]
    wears: tuple[str, ...]


class Case(NamedTuple):
    pictures: str
    wear: str
    hr: Pixels
    lr: Pixels


def main(args: Namespace) -> None:
    torch.set_num_threads(args.threads)
    chosen = wanted(args)
    cases = [case for pictures in picture_sets(args) for case in cases_of(pictures)]
    if args.sheet:
        _check_sheet(args, cases, len(chosen) + 1)
    scorer = Scorer(args)
    sheet: list[dict[str, Pixels]] = []
    found: dict[tuple[str, str, str], Found] = {}  # method, pictures, wear
    with ExitStack() as stack:
        processes = {name: stack.enter_context(process()) for name in chosen}
        dtypes = in_turns(processes, begin, chosen, args.threads)
        for number, case in enumerate(cases, 1):
            print(f"{number} of {len(cases)}: {case.pictures}, {case.wear}", flush=True)
            made = {name: sr for name, (sr, _) in in_turns(processes, run, case.lr).items()}
            for name, sr in made.items():
                of_case = found.setdefault((name, case.pictures, case.wear), Found())
                scorer.add(of_case, sr, case.hr, case.lr)
            if args.sheet:
                sheet.append(made | {"original": case.hr})
        largest = max((case.lr for case in cases), key=pixels_of)
        costs = costs_of(processes, largest, args.repetitions)
    rows = []
    for (name, pictures, wear), of_case in found.items():
        if name not in costs:
            continue
        asked = {"pictures": pictures, "wear": wear, "count": of_case.count}
        if args.hr:
            asked |= {"folders": args.hr, "crop": args.crop}
        asked |= {"threads": args.threads, "dtype": dtypes[name], **chosen[name].settings}
        metrics = {**scorer.metrics(of_case), **costs[name]}
        rows.append(Measured(name, f"{pictures}, {wear}", asked, metrics))
    finish(args, "peers", rows)
    if args.sheet:
        columns = [name for name in sheet[0] if all(name in made for made in sheet)]
        write_grid(args.sheet, [np.hstack([made[name] for name in columns]) for made in sheet])
        print(f"{args.sheet}: {' | '.join(columns)}")


def _check_sheet(args: Namespace, cases: list[Case], columns: int) -> None:
    """Raises UserError where it could not be written in the end."""
    width = max(case.hr.shape[1] for case in cases) * columns
    check_writable(args.sheet, width, sum(case.hr.shape[0] + GAP for case in cases))
    folders = map(Path, args.hr or [TEST_SETS])
    read = (path for folder in folders for path in list_images(folder).pictures)
    check_outputs([args.sheet], read)


def wanted(args: Namespace) -> dict[str, Method]:
    """By their names in the table. Raises UserError for steps of no model."""
    if args.steps and not args.model:
        raise UserError("--steps: it is of our models, and none is given; name one with -n.")
    known = peers(Path(args.weights))
    models = [ours(name, steps) for name in args.model for steps in args.steps or [None]]
    return {method.name: method for method in (*(known[name] for name in args.peers), *models)}


def picture_sets(args: Namespace) -> list[Pictures]:
    """Raises UserError where there is no picture."""
    sets = [_named(args)] if args.hr else _published(args)
    if not any(pictures.hr for pictures in sets):
        raise UserError("no picture to measure on; look at --hr, --wear and --limit.")
    return sets


def _named(args: Namespace) -> Pictures:
    limit = sys.maxsize if args.limit is None else args.limit
    pairs = validation_pairs(DataConfig(val=tuple(args.hr)), SCALE, limit, args.crop)
    name = " and ".join(dict.fromkeys(Path(folder).name for folder in args.hr))
    return Pictures(name, [hr for _, hr, _ in pairs], tuple(args.wear))


def _published(args: Namespace) -> list[Pictures]:
    if args.crop:
        raise UserError("--crop: Set5 and Set14 are taken whole; name other pictures with --hr.")
    if not TEST_SETS.is_dir():
        raise UserError(f"{TEST_SETS} is not here; name folders of original pictures with --hr.")
    files = list_images(TEST_SETS).pictures
    found = []
    for name, (start, wears) in PUBLISHED.items():
        of_set = [path for path in files if path.name.startswith(start)][: args.limit]
        if chosen := tuple(wear for wear in wears if wear in args.wear):
            found.append(Pictures(name, [_whole(path) for path in of_set], chosen))
    return found


def _whole(path: Path) -> Tensor:
    hr = torch.from_numpy(to_uint8(read_image(path).pixels)).permute(2, 0, 1)[None]
    height, width = (side // SCALE * SCALE for side in size_of(hr))
    return to_float(hr[..., :height, :width])


def cases_of(pictures: Pictures) -> Iterator[Case]:
    """Wear by wear, so that rows of one wear follow each other."""
    made = [(hr, worn(hr, SCALE, number)) for number, hr in enumerate(pictures.hr)]
    for wear in pictures.wears:
        for hr, lr in made:
            yield Case(pictures.name, wear, from_tensor(hr), from_tensor(lr[wear]))


def costs_of(
    processes: Processes, lr: Pixels, repetitions: int
) -> dict[str, dict[str, float | list[float]]]:
    """Method -> seconds_per_megapixel of each repetition, peak_mib; of those that came to the end."""
    megapixels = pixels_of(lr) * SCALE**2 / 1e6
    seconds: dict[str, list[float]] = {name: [] for name in processes}
    for _ in range(repetitions):
        for name, (_, passed) in in_turns(processes, run, lr).items():
            seconds[name].append(passed / megapixels)
    return {
        name: {"seconds_per_megapixel": seconds[name], **peak}
        for name, peak in in_turns(processes, memory).items()
    }


def pixels_of(lr: Pixels) -> int:
    return lr.shape[0] * lr.shape[1]
