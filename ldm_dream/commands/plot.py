"""Draw the curves of training runs from their metrics.jsonl: one SVG, or TensorBoard's event files.

examples:
  ldm-dream plot runs/ldm/ldm-4x runs/ldm/ldm-4x-dream -o curves.svg
  ldm-dream plot runs/ldm/ldm-4x runs/ldm/ldm-4x-dream --tensorboard runs/events

exit status:
  0 drawn, 2 a mistake in the command or in what it reads (one line says which),
  130 or 143 stopped by Ctrl-C or SIGTERM
"""

import argparse
from pathlib import Path

from ldm_dream.cli import command_line, user_errors
from ldm_dream.errors import shown
from ldm_dream.stopping import stoppable


def build_parser() -> argparse.ArgumentParser:
    parser = command_line("plot", __doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN_DIR", help="folder with a metrics.jsonl")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE.svg",
        help="(default: curves.svg in the first RUN_DIR)",
    )
    where.add_argument(
        "--tensorboard",
        type=Path,
        metavar="DIR",
        help="write event files here instead, for tensorboard --logdir DIR",
    )
    return parser


def main(words: list[str] | None = None) -> None:
    args = build_parser().parse_args(words)
    with user_errors(), stoppable():
        from ldm_dream.training.curves import check_svg, read_runs, write_svg, write_tensorboard

        runs = read_runs(args.runs)
        output = args.tensorboard or args.output or args.runs[0] / "curves.svg"
        if not args.tensorboard:
            check_svg(output, args.runs)
        (write_tensorboard if args.tensorboard else write_svg)(runs, output)
    print(shown(f"{', '.join(runs)} -> {output}"))
