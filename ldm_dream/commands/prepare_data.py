"""Make the folders of pictures that the configs name, from archives as their publishers give them.

examples:
  ldm-dream prepare --list
  ldm-dream prepare ffhq --from downloads -o data --sizes 128,512
  ldm-dream prepare div2k --from DIV2K_train_HR.zip DIV2K_valid_HR.zip --format lmdb
  ldm-dream prepare celebahq --check

Nothing is downloaded: --list names the pages that give the archives, and their terms. Stopped, it
goes on by the same command.

exit status:
  0 all done, 1 some pictures could not be read, or with --check something is missing, 2 a mistake
  in the command or an archive that is broken, 130 or 143 stopped by Ctrl-C or SIGTERM
"""

import argparse
import sys
from pathlib import Path

from ldm_dream.cli import command_line, positive, user_errors
from ldm_dream.stopping import stoppable


def build_parser() -> argparse.ArgumentParser:
    parser = command_line("prepare", __doc__)
    add = parser.add_argument
    add("recipe", nargs="?", help="name of a data set, as --list has it")
    add("--list", action="store_true", help="all data sets: pages, terms, sets, configs")
    add(
        "--from",
        dest="places",
        type=Path,
        nargs="+",
        default=[Path("downloads")],
        metavar="PATH",
        help="folders, zips and tars with the pictures (default: downloads)",
    )
    add("-o", "--output", type=Path, default=Path("data"), metavar="DIR", help="(default: data)")
    add("--format", choices=("folder", "lmdb"), default="folder", help="of sets to train on")
    add("--sizes", type=_numbers, metavar="N,N", help="sides of squares (faces: 128, 512, 16)")
    add("--scale", type=int, metavar="N", help="of given LR pictures: 2, 3 or 4 (default: 4)")
    add("--limit", type=positive, metavar="N", help="at most so many pictures a set, evenly spaced")
    add(
        "--eval-count",
        type=positive,
        default=100,
        metavar="N",
        help="to evaluate on (default: 100)",
    )
    add("--workers", type=positive, metavar="N", help="processes (default: one a core)")
    add("--check", action="store_true", help="say what is there and what is missing; write nothing")
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(positive(number) for number in text.split(","))


def run(args: argparse.Namespace) -> int:
    # here, so that --help answers at once
    from tqdm import tqdm

    from ldm_dream.data.machine import cores
    from ldm_dream.preparing.check import about_all, check
    from ldm_dream.preparing.job import Job
    from ldm_dream.preparing.recipe import Options
    from ldm_dream.preparing.recipes import recipe_of

    if args.list:
        print("\n".join(about_all()))
        return 0
    recipe = recipe_of(args.recipe)
    options = Options(args.sizes, args.scale, args.limit, args.eval_count)
    request = (recipe, args.places, args.output, options, args.format == "lmdb")
    if args.check:
        lines, is_complete = check(*request)
        print("\n".join(lines))
        return 0 if is_complete else 1
    if sys.stderr.isatty():
        print("looking for pictures; in large archives this takes minutes", file=sys.stderr)
    job = Job.of(*request)
    for _ in tqdm(job.run(args.workers or cores()), total=job.todo(), unit="picture", disable=None):
        pass
    print("\n".join(job.summary()))
    sys.stderr.writelines(f"failed: {line}\n" for line in job.failures)
    if job.counts["left out"]:
        sys.stderr.write(f"left out: {job.counts['left out']} smaller than what is wanted\n")
    return 1 if job.failures else 0


def main(words: list[str] | None = None) -> None:
    args = build_parser().parse_args(words)
    with user_errors(), stoppable("what was done stays, and the same command goes on"):
        raise SystemExit(run(args))
