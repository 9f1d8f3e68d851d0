"""Upscale pictures and folders of pictures.

examples:
  ldm-dream upscale photo.png -o photo-x4.png
  ldm-dream upscale holiday family/*.jpg -o larger --ext png --suffix _x4
  ldm-dream upscale -i photos -o out --recursive --skip-existing -s 3 --json-report out/report.json

exit status:
  0 all done, 1 some of several pictures failed (listed at the end), 2 a mistake in the command or in
  the one picture given, 130 or 143 stopped by Ctrl-C or SIGTERM
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

from ldm_dream.cli import EXIT_USER_ERROR, command_line, stoppable, user_errors
from ldm_dream.errors import UserError, shown, some
from ldm_dream.upscaling.flags import add_flags

# options in which the processes of a shared run may differ
OF_A_PROCESS = {"output", "device", "json_report", "skip_existing", "share", "quiet"}


def build_parser() -> argparse.ArgumentParser:
    parser = command_line("upscale", __doc__)
    parser.usage = "ldm-dream upscale INPUT [INPUT ...] -o OUT [options]"
    add_flags(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    sources = [*args.inputs, *args.input]
    if not sources:
        raise UserError("no picture is given; name pictures and folders of them before -o.")
    if sys.stderr.isatty() and not args.quiet:
        names = some([shown(path) for path in sources], 3)
        sys.stderr.write(f"{names} -> {shown(args.output)}: loading {shown(args.model)}\n")
    # here, so that --help and the first line come without torch
    from ldm_dream.upscaling.engine import Options
    from ldm_dream.upscaling.folder import Result, Work, summary, upscale_all, write_report
    from ldm_dream.upscaling.forecast import forecast
    from ldm_dream.upscaling.planning import Naming, check_places, is_one_picture, plan_jobs
    from ldm_dream.upscaling.progress import Progress
    from ldm_dream.upscaling.shards import SharedRun, device_of_rank, is_under_torchrun, take_part
    from ldm_dream.upscaling.upscaler import Upscaler

    is_one, is_shared = is_one_picture(sources), args.share or is_under_torchrun()
    if is_one and is_shared:
        raise UserError("one picture cannot be shared; leave out torchrun and --share.")
    plan = plan_jobs(sources, args.output, args.recursive, Naming(args.suffix, args.ext))
    check_places(plan, args.json_report, Path(args.model))
    upscaler = Upscaler.from_pretrained(
        args.model, device_of_rank(args.device), args.dtype, args.compile
    )
    scale = upscaler.scale if args.scale is None else args.scale
    options = {field.name: getattr(args, field.name) for field in fields(Options)}
    options["tile"] = args.tile or None
    calls = upscaler.engine.calls(Options(**options))
    upscale = partial(upscaler, scale=scale, **options)
    work = Work(upscale, scale, args.skip_existing, args.metadata == "keep")
    settings = vars(args) | {"input": [shown(path) for path in sources]}
    settings.pop("inputs")

    def report(results: list[Result]) -> None:
        if args.json_report:
            write_report(args.json_report, settings, plan, results)

    def say(line: str) -> None:
        if not args.quiet:
            print(line, flush=True)

    if is_shared:
        alike = {name: settings[name] for name in settings.keys() - OF_A_PROCESS}
        shared = SharedRun(args.output, alike)
        results = take_part(shared, plan, work, report, say)
        return int(any(result.status == "failed" for result in results))
    expected = forecast(plan.jobs, scale, args.skip_existing)
    results: list[Result] = []
    with Progress(expected.pixels, expected.pictures, calls, args.quiet) as progress:
        if expected.is_large or progress.is_bar:
            progress.tell(f"{expected}.")
        work = replace(work, upscale=progress.watching(work.upscale))
        try:
            for result in upscale_all(plan.jobs, work):
                results.append(result)
                progress.write(str(result))
        finally:
            report(results)
    if not is_one:
        progress.write(summary(plan, results))
    failed = [f"failed: {result.error}\n" for result in results if result.status == "failed"]
    sys.stderr.writelines(failed)
    return 0 if not failed else EXIT_USER_ERROR if is_one else 1


def main(words: list[str] | None = None) -> None:
    args = build_parser().parse_args(words)
    stays = f"every picture in {shown(args.output)} is whole; --skip-existing goes on from there"
    with user_errors(), stoppable(stays):
        raise SystemExit(run(args))
