"""Write a model folder as ONNX graphs, with the numbers of its sampler.

examples:
  ldm-dream export-onnx dream-latent-x4-tiny -o exported
  ldm-dream export-onnx dream-latent-x4-tiny -o exported --size 128x128

It takes the packages of the extra onnx: pip install 'ldm_dream[onnx]'

exit status:
  0 written, 2 a mistake in the command or in what it reads (one line says which),
  130 or 143 stopped by Ctrl-C or SIGTERM
"""

import argparse
import re
from os.path import expanduser
from pathlib import Path

from ldm_dream.cli import command_line, user_errors
from ldm_dream.errors import shown
from ldm_dream.stopping import stoppable
from ldm_dream.writing import check_folder


def build_parser() -> argparse.ArgumentParser:
    parser = command_line("export-onnx", __doc__)
    parser.add_argument("model", metavar="MODEL_DIR", help="model folder or bundled model")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write"
    )
    parser.add_argument(
        "--size",
        type=size,
        metavar="HxW",
        help="of the LR pictures, the only one that the graphs shall take; default: every size",
    )
    return parser


def size(text: str) -> tuple[int, int]:
    """HxW, e.g. 128x96."""
    if not (found := re.fullmatch(r"(\d{1,6})x(\d{1,6})", text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give HxW, e.g. 128x96")
    return int(found[1]), int(found[2])


def main(words: list[str] | None = None) -> None:
    args = build_parser().parse_args(words)
    with user_errors(), stoppable():
        # here, so that --help answers without torch
        from ldm_dream.interchange.onnx import DENOISER, check_installed, export_onnx
        from ldm_dream.model_folder import load_model

        check_installed()
        check_folder(args.output, holds=DENOISER, inputs=[Path(expanduser(args.model))])
        export_onnx(load_model(args.model), args.output, args.size)
    print(f"{shown(args.output)}: ONNX graphs; config.json there says how they are run")
