"""Write a model folder as a pipeline that diffusers loads (LDM-SR: U-Net, VQGAN and DDIM scheduler).

python tools/export_diffusers.py models/ldm-sr -o models/ldm-sr-diffusers
"""

import argparse
from pathlib import Path

from ldm_dream.cli import user_errors


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="export_diffusers.py", description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL_DIR", help="model folder or bundled model with an ldm network")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    with user_errors():
        from ldm_dream.checkpoint import load_model  # here, so that --help answers without torch
        from ldm_dream.export import export_diffusers

        export_diffusers(load_model(args.model), args.output)
    print(f"{args.output}: load it with diffusers.LDMSuperResolutionPipeline.from_pretrained({str(args.output)!r})")


if __name__ == "__main__":
    main()
