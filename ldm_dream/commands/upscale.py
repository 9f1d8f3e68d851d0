"""Upscale pictures and folders of pictures.

examples:
  ldm-dream upscale photo.png -o photo-x4.png
  ldm-dream upscale holiday family/*.jpg -o larger --ext png --suffix _x4
  ldm-dream upscale photos -o out --recursive --skip-existing -s 3 --json-report out/report.json

exit status:
  0 all done, 1 some of several pictures failed (listed at the end), 2 a mistake in the command or
  in the one picture given, 3 all of a shared folder done, but some pictures failed, 130 or 143
  stopped by Ctrl-C or SIGTERM
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from functools import partial

from ldm_dream.cli import command_line, user_errors, warnings_shown
from ldm_dream.errors import UserError, shown, some
from ldm_dream.stopping import stoppable
from ldm_dream.upscaling.flags import add_flags

STAYS = "every picture in {} is whole; --skip-existing goes on from there"


def build_parser() -> argparse.ArgumentParser:
    parser = command_line("upscale", __doc__)
    parser.usage = "ldm-dream upscale INPUT [INPUT ...] -o OUT [options]"
    add_flags(parser)
    return parser


def run(args: argparse.Namespace, last: ExitStack) -> int:
    sources = args.input = [*vars(args).pop("inputs"), *args.input]
    if not sources:
        raise UserError("no picture is given; name pictures and folders of them before -o.")
    if sys.stderr.isatty() and not args.quiet:
        sys.stderr.write(
            f"{some([*map(shown, sources)], 3)} -> {shown(args.output)}: loading {shown(args.model)}\n"
        )
    # here, so that --help and the first line come without torch
    from ldm_dream.data.images import check_quality
    from ldm_dream.upscaling.engine import Options
    from ldm_dream.upscaling.folder import (
        Work,
        check_one,
        failures,
        summary,
        upscale_one,
        upscale_plan,
        used,
    )
    from ldm_dream.upscaling.forecast import forecast
    from ldm_dream.upscaling.models import known_size
    from ldm_dream.upscaling.planning import Naming, check_places, is_one_picture, plan_jobs
    from ldm_dream.upscaling.progress import Progress
    from ldm_dream.upscaling.shards import device_of_rank, is_under_torchrun, share
    from ldm_dream.upscaling.upscaler import Upscaler

    plan = plan_jobs(sources, args.output, args.recursive, Naming(args.suffix, args.ext))
    check_places(plan, args.json_report, args.model)
    check_quality(args.quality, [job.target for job in plan.jobs])
    how = Options(**{field.name: getattr(args, field.name) for field in fields(Options)})
    if (
        (wanted := known_size(args.model, how, args.scale))
        and is_one_picture(sources)
        and not (args.json_report or args.share)  # which tell of it, too
    ):
        check_one(plan.jobs[0], wanted, how.max_pixels, args.skip_existing)
    upscaler = Upscaler.from_pretrained(
        args.model, device_of_rank(args.device), args.dtype, args.compile
    )
    calls, size = upscaler.engine.calls(how), how.size(upscaler.scale, args.scale)
    work = Work(
        partial(upscaler, scale=args.scale, **asdict(how)),
        size,
        args.skip_existing,
        args.metadata == "keep",
        args.quality,
    )
    settings = vars(args) | used(upscaler.engine, how, size)
    if args.share or is_under_torchrun():
        return share(
            settings | {"device": args.device, "dtype": args.dtype},  # each process has its own
            plan,
            work,
            lambda line: args.quiet or print(line, flush=True),
        )
    expected = forecast(plan.jobs, size, args.skip_existing)
    with Progress(expected.pixels, expected.pictures, calls * how.runs, args.quiet) as progress:
        progress.introduce(expected, f"{settings['dtype']} on {settings['device']}")
        work = replace(work, upscale=progress.watching(work.upscale), note=progress.note)
        if is_one_picture(sources):
            upscale_one(plan, work, settings, progress.write, last)
            return 0
        results = upscale_plan(plan, work, settings, progress.write, last)
    progress.write(summary(plan, results))
    sys.stderr.writelines(failed := failures(results))
    return 1 if failed else 0


def main(words: list[str] | None = None) -> None:
    with user_errors():
        args = build_parser().parse_args(words)  # which prints, too
        with (
            warnings_shown(not args.quiet),
            stoppable(STAYS.format(shown(args.output))) as last,
        ):
            raise SystemExit(run(args, last))
