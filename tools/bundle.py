"""Put a trained model folder among the bundled ones, in half precision and with its card.

python tools/bundle.py runs/tiny/vq-f4-tiny/model vq-f4-tiny --card card.md

Of an autoencoder, the scale of its latents is measured on the way; one with a teacher keeps its
teacher's, and one whose encoder was frozen its own.
"""

import argparse
import re
from pathlib import Path

from ldm_dream.cli import command_line, user_errors
from ldm_dream.errors import UserError
from ldm_dream.writing import check_folder


def build_parser() -> argparse.ArgumentParser:
    parser = command_line("bundle.py", __doc__, is_tool=True)
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL_DIR",
        help="a folder that tools/train.py wrote: the run or a model in it",
    )
    parser.add_argument("name", help="its name among the bundled models")
    parser.add_argument("--card", type=Path, required=True, help="README.md of the model folder")
    return parser


def read_card(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no card can be read from it ({error}); name a text.") from None


def main() -> None:
    args = build_parser().parse_args()
    with user_errors():
        import torch

        from ldm_dream.config.run import AutoencoderRun
        from ldm_dream.model_config import AUTOENCODER, BUNDLED, find_model, read_run
        from ldm_dream.model_folder import read_tensors, save_model
        from ldm_dream.training.autoencoder import latent_scale

        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", args.name):
            raise UserError(f"{args.name!r}: is no name of a model; give one such as vq-f4-tiny.")
        model, folder = find_model(args.model), BUNDLED / args.name
        run, state = read_run(model), read_tensors(model / "model.safetensors")
        if folder.exists() and folder.samefile(model):
            raise UserError(f"{args.model}: is the bundled model itself; give the one of a run.")
        check_folder(folder, holds="model.safetensors")
        card = read_card(args.card)
        if isinstance(run, AutoencoderRun) and not run.keeps_latents:
            scale = latent_scale(run, state)
            print(f"latent scale {scale:.4f}")
            run = run.model_copy(
                update={"autoencoder": run.autoencoder.model_copy(update={"latent_scale": scale})}
            )
        half = {
            name: value.to(torch.float16) if value.is_floating_point() else value
            for name, value in state.items()
        }
        # as it is: the model knows it by its digest
        own = model / AUTOENCODER
        save_model(folder, run, half, card, read_tensors(own) if own.is_file() else None)
        print(f"{folder}: {sum(v.numel() for v in half.values()):,} parameters")


if __name__ == "__main__":
    main()
