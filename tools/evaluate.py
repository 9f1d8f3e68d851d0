"""Score results or a model against HR pictures: PSNR, SSIM (Y and RGB), LPIPS.

python tools/evaluate.py --hr HR_DIR -n dream-latent-x4-tiny --lr LR_DIR
python tools/evaluate.py --hr HR_DIR --sr RESULTS_DIR
"""

import argparse
import json
import sys
from pathlib import Path

from ldm_dream.cli import user_errors


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="evaluate.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--hr", type=Path, required=True, metavar="DIR", help="original pictures")
    add("--match", default="", metavar="TEXT", help="only pictures whose name holds this")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--sr", type=Path, metavar="DIR", help="results with the same names")
    what.add_argument("-n", "--model", help="bundled model or model folder to run")
    add("--lr", type=Path, metavar="DIR", help="low-resolution pictures with the same names (default: bicubic from --hr)")
    add("--scale", type=int, default=4, metavar="N", help="HR over LR size, and the border that is cut (default: 4)")
    add("--steps", type=int, metavar="N", help="sampling steps (default: the model's)")
    add("--color-fix", choices=("none", "wavelet", "adain"), default="wavelet")
    add("--dtype", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    add("--lpips-weights", type=Path, metavar="FILE", help="AlexNet + LPIPS state dict (default: torchvision's cache)")
    add("--json", type=Path, metavar="FILE", help="write every row")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    with user_errors():
        from ldm_dream.data.images import find_images
        from ldm_dream.evaluation import PROTOCOL, evaluate_folder, evaluate_model, means, table
        from ldm_dream.metrics import lpips_or_reason

        lpips, reason = lpips_or_reason(args.lpips_weights)
        if lpips is None:
            print(f"no LPIPS: {reason}", file=sys.stderr)
        files = [path for path in find_images(args.hr) if args.match in path.name]
        if args.sr:
            rows = list(evaluate_folder(files, args.sr, args.scale, lpips))
        else:
            from ldm_dream.upscale import Upscaler

            upscaler = Upscaler.from_pretrained(args.model, dtype=args.dtype)

            def upscale(lr):
                return upscaler(lr, scale=args.scale, steps=args.steps, color_fix=args.color_fix)

            rows = list(evaluate_model(files, args.lr, upscale, Path(args.model).name, args.scale, lpips))
        print(f"{args.hr} {args.match}: means of {len(files)} pictures. {PROTOCOL.format(scale=args.scale)}")
        print(table(means(rows)))
        if args.json:
            args.json.write_text(json.dumps({"protocol": PROTOCOL.format(scale=args.scale), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
