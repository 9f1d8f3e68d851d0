"""Upscale the bundled photo with the bundled model and score it against bicubic.

python tools/demo.py -o demo
"""

import argparse
from pathlib import Path

import numpy as np

from ldm_dream.cli import user_errors

PHOTO = (
    Path(__file__).parent / "assets" / "chelsea.png"
)  # Stefan van der Walt, CC0, from scikit-image; see assets/README.md


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="demo.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("demo"), metavar="DIR", help="(default: demo)"
    )
    parser.add_argument(
        "-n",
        "--model",
        default="dream-latent-x4-tiny",
        help="bundled model, model folder or hf:owner/name",
    )
    parser.add_argument(
        "--lpips-weights",
        type=Path,
        metavar="FILE",
        help="AlexNet + LPIPS state dict (default: torchvision's cache)",
    )
    return parser


def main() -> None:
    args = build_parser().parse_args()
    with user_errors():
        from ldm_dream import Upscaler
        from ldm_dream.data.images import Image, read_image, write_image
        from ldm_dream.scoring.evaluation import PROTOCOL, bicubic, low_resolution, table
        from ldm_dream.scoring.metrics import lpips_or_reason, scores

        lpips, why = lpips_or_reason(args.lpips_weights)
        hr = read_image(PHOTO).pixels
        lr = low_resolution(hr, 4)
        before, after = bicubic(lr, 4), Upscaler.from_pretrained(args.model)(lr, scale=4)
        args.output.mkdir(parents=True, exist_ok=True)
        for name, pixels in (
            ("lr", lr),
            ("after", after),
            ("before-after", np.concatenate([before, after, hr], axis=1)),
        ):
            write_image(args.output / f"{name}.png", Image(pixels))
        print(
            table(
                {"bicubic": scores(before, hr, 4, lpips), args.model: scores(after, hr, 4, lpips)}
            )
        )
        print(
            PROTOCOL.format(scale=4)
            if lpips
            else f"{PROTOCOL.format(scale=4).partition('; LPIPS')[0]}. No LPIPS: {why}"
        )
        print(f"{args.output / 'before-after.png'}: bicubic x4 | {args.model} | original")


if __name__ == "__main__":
    main()
