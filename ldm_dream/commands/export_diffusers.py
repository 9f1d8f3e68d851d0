"""Write a model folder as parts for diffusers: U-Net, VQGAN and scheduler.

examples:
  ldm-dream export models/ldm-sr -o models/ldm-sr-diffusers
  ldm-dream export models/resshift-x4 -o models/resshift-x4-diffusers

A part that diffusers has no class for is written as safetensors and config.json.

exit status:
  0 written, 2 a mistake in the command or in what it reads (one line says which),
  130 or 143 stopped by Ctrl-C or SIGTERM
"""

import argparse
from os.path import expanduser
from pathlib import Path

from ldm_dream.cli import command_line, user_errors
from ldm_dream.errors import shown
from ldm_dream.stopping import stoppable
from ldm_dream.writing import check_folder


def build_parser() -> argparse.ArgumentParser:
    parser = command_line("export", __doc__)
    parser.add_argument("model", metavar="MODEL_DIR", help="model folder or bundled model")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write"
    )
    return parser


def main(words: list[str] | None = None) -> None:
    args = build_parser().parse_args(words)
    with user_errors(), stoppable():
        from ldm_dream.interchange.diffusers import export_diffusers, is_pipeline
        from ldm_dream.model_folder import load_model  # here, so that --help answers without torch

        check_folder(args.output, holds="run.yaml", inputs=[Path(expanduser(args.model))])
        model = load_model(args.model)
        parts = export_diffusers(model, args.output)
    for part in parts:
        load = f"ldm_dream's {part.kind}: {part.why}" if part.why else f"diffusers.{part.kind}"
        print(shown(f"{args.output / part.folder}: {load}"))
    if is_pipeline(parts, model.run):
        how = f"load it with diffusers.LDMSuperResolutionPipeline.from_pretrained({str(args.output)!r})"
    else:
        how = "parts to put together, as run.yaml there says; diffusers has no pipeline of them"
    print(f"{shown(args.output)}: {how}")
