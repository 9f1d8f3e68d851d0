"""Write a model folder to give away, with its card, from a run or from one of its checkpoints.

examples:
  ldm-dream release runs/mine -o models/mine
  ldm-dream release runs/mine/checkpoints/step-00001500 -o models/mine-1500

Of a run its best model is taken, else its last, else its newest checkpoint; of a checkpoint the
averaged weights.

exit status:
  0 written, 2 a mistake in the command or in what it reads (one line says which),
  130 or 143 stopped by Ctrl-C or SIGTERM
"""

import argparse
from pathlib import Path

from ldm_dream.cli import command_line, user_errors
from ldm_dream.errors import shown
from ldm_dream.stopping import stoppable


def build_parser() -> argparse.ArgumentParser:
    parser = command_line("release", __doc__)
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="run folder, model folder or RUN/checkpoints/step-N")
    add("-o", "--output", type=Path, required=True, metavar="DIR", help="model folder to write")
    add(
        "--latent-scale",
        nargs="+",
        default=[],
        metavar="DIR",
        help="of an autoencoder: measure its latents of these pictures, and write the latent_scale "
        "that a diffusion run wants",
    )
    return parser


def main(words: list[str] | None = None) -> None:
    args = build_parser().parse_args(words)
    with user_errors(), stoppable():
        from ldm_dream.training.release import release  # here, so that --help answers without torch

        made_from = release(args.run, args.output, tuple(args.latent_scale))
        print(shown(f"{args.output}: {made_from}; complete its README.md"))
