"""Upscale a picture or a folder of pictures.

    ldm-dream upscale -i photo.png -o out
    ldm-dream upscale -i photos -o out --recursive --skip-existing -s 3 --json-report out/report.json

Exit status: 0 all done, 1 some pictures of a folder failed (listed at the end), 2 a mistake in the
command or in the one picture given, 130 or 143 stopped by Ctrl-C or SIGTERM.
"""

import argparse
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path

from ldm_dream.cli import EXIT_USER_ERROR, command_line, stoppable, user_errors

# options in which the processes of a shared run may differ
OF_A_PROCESS = ("output", "device", "json_report", "skip_existing", "share")


def build_parser() -> argparse.ArgumentParser:
    parser = command_line("upscale", __doc__)
    parser.add_argument(
        "-i",
        "--input",
        type=Path,
        required=True,
        metavar="FILE_OR_DIR",
        help="PNG, JPEG, WebP, TIFF, AVIF, GIF, BMP or JPEG 2000, or a folder",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help="folder; for one picture also a file name",
    )
    parser.add_argument(
        "-n",
        "--model",
        default="dream-latent-x4-tiny",
        help="bundled model, model folder or hf:owner/name (default: %(default)s)",
    )
    parser.add_argument(
        "-s",
        "--scale",
        type=float,
        help="output size over input size, any number (default: the model's)",
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help="sampling steps (default: the model's)"
    )
    parser.add_argument(
        "--sampler",
        metavar="S",
        help="ancestral, ddim, dpm-solver++ or resshift (default: the model's)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="same seed, same picture (default: 0)"
    )
    parser.add_argument(
        "-t",
        "--tile",
        type=int,
        metavar="TILE_PX",
        help="side of a tile in input pixels (default: automatic)",
    )
    parser.add_argument(
        "--tile-pad",
        type=int,
        default=16,
        metavar="PX",
        help="overlap a side in input pixels (default: 16)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="tiles computed at a time (default: 1)",
    )
    parser.add_argument(
        "--color-fix",
        choices=("none", "wavelet", "adain"),
        default="wavelet",
        help="(default: wavelet)",
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=2**29,
        metavar="N",
        help="of a result; a larger one is refused (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="(default: auto)"
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)"
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile, on CUDA with CUDA graphs; for many pictures",
    )
    parser.add_argument("--recursive", action="store_true", help="also pictures in subfolders")
    parser.add_argument(
        "--skip-existing", action="store_true", help="leave out pictures whose output is there"
    )
    parser.add_argument(
        "--share",
        action="store_true",
        help="share the pictures with other processes of this command, which torchrun implies",
    )
    parser.add_argument(
        "--ext",
        default="auto",
        help="format of the outputs: auto (as the input), png, jpg, webp, tif, avif",
    )
    parser.add_argument(
        "--suffix", default="", help="added to output names before the extension, e.g. _x4"
    )
    parser.add_argument(
        "--metadata",
        choices=("keep", "strip"),
        default="keep",
        help="EXIF (also the place, by GPS), XMP, IPTC, texts, resolution (default: keep)",
    )
    parser.add_argument(
        "--json-report", type=Path, metavar="FILE", help="settings and one entry a picture as JSON"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    # here, so that --help answers without torch
    from tqdm import tqdm

    from ldm_dream.upscaling.engine import Options
    from ldm_dream.upscaling.folder import Result, Work, summary, upscale_all, write_report
    from ldm_dream.upscaling.planning import Naming, check_places, plan_jobs
    from ldm_dream.upscaling.shards import SharedRun, device_of_rank, is_under_torchrun, take_part
    from ldm_dream.upscaling.upscaler import Upscaler

    plan = plan_jobs(args.input, args.output, args.recursive, Naming(args.suffix, args.ext))
    check_places(plan, args.json_report, Path(args.model))
    upscaler = Upscaler.from_pretrained(
        args.model, device_of_rank(args.device), args.dtype, args.compile
    )
    scale = upscaler.scale if args.scale is None else args.scale
    options = {field.name: getattr(args, field.name) for field in fields(Options)}
    work = Work(
        partial(upscaler, scale=scale, **options),
        scale,
        args.skip_existing,
        args.metadata == "keep",
    )
    if args.share or is_under_torchrun():
        shared = SharedRun(
            args.output, {k: v for k, v in vars(args).items() if k not in OF_A_PROCESS}
        )

        def report(results: list[Result]) -> None:
            if args.json_report:
                write_report(args.json_report, vars(args), plan, results)
            print(summary(plan, results), flush=True)

        results = take_part(shared, plan, work, report, partial(print, flush=True))
        return int(any(result.status == "failed" for result in results))
    results = []
    try:
        for result in tqdm(
            upscale_all(plan.jobs, work),
            total=len(plan.jobs),
            unit="picture",
            disable=args.input.is_file() or None,  # a bar for a folder, on a terminal (None)
        ):
            results.append(result)
            tqdm.write(str(result))
            sys.stdout.flush()
    finally:
        if args.json_report:
            write_report(args.json_report, vars(args), plan, results)
    failed = [f"failed: {result.error}\n" for result in results if result.status == "failed"]
    sys.stderr.writelines(failed)
    if args.input.is_dir():
        print(summary(plan, results))
    return 0 if not failed else 1 if args.input.is_dir() else EXIT_USER_ERROR


def main(words: list[str] | None = None) -> None:
    args = build_parser().parse_args(words)
    with user_errors(), stoppable("the pictures listed above are complete"):
        raise SystemExit(run(args))
