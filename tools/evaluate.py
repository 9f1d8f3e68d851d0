"""Score results or a model against HR pictures: PSNR, SSIM, LPIPS, consistency and FID.

python tools/evaluate.py --hr HR_DIR -n dream-latent-x4-tiny --lr LR_DIR
python tools/evaluate.py --hr HR_DIR --sr RESULTS_DIR --lr LR_DIR --json scores.json
python tools/evaluate.py --hr HR_DIR --sr RESULTS_DIR --protocol dream-legacy

Without the Inception weights of FID and KID, distances of other features stand in for them, under
their own names.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from ldm_dream.cli import command_line, user_errors


def build_parser() -> argparse.ArgumentParser:
    parser = command_line("evaluate.py", __doc__)
    add = parser.add_argument
    add("--hr", type=Path, required=True, metavar="DIR", help="original pictures")
    add("--match", default="", metavar="TEXT", help="only pictures whose name holds this")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--sr", type=Path, metavar="DIR", help="results with the same names")
    what.add_argument("-n", "--model", help="bundled model, model folder or hf:owner/name to run")
    add(
        "--lr",
        type=Path,
        metavar="DIR",
        help="LR pictures with the same names (default: bicubic from --hr; with --sr: none)",
    )
    add(
        "--scale",
        type=int,
        default=4,
        metavar="N",
        help="HR over LR size, and the border that is cut (default: 4)",
    )
    add("--steps", type=int, metavar="N", help="sampling steps (default: the model's)")
    add("--color-fix", choices=("none", "wavelet", "adain"), default="wavelet")
    add("--dtype", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    add(
        "--protocol",
        choices=("standard", "dream-legacy"),
        default="standard",
        help="dream-legacy: as in DREAM's own code",
    )
    add("--lpips-net", choices=("alex", "vgg"), help="(default: alex; dream-legacy: vgg)")
    add(
        "--lpips-weights",
        type=Path,
        metavar="FILE",
        help="state dict of that net (default: torchvision's cache)",
    )
    add(
        "--inception",
        type=Path,
        metavar="FILE",
        help="torch-fidelity's Inception weights (default: torch's cache)",
    )
    add("--json", type=Path, metavar="FILE", help="write protocol, means and every row")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    with user_errors():
        import numpy as np

        from ldm_dream.data.images import find_images
        from ldm_dream.scoring.evaluation import (
            PROTOCOLS,
            Evaluator,
            evaluate_folder,
            evaluate_model,
            report_text,
        )

        protocol = PROTOCOLS[args.protocol]
        if args.lpips_net:
            protocol = replace(protocol, lpips_net=args.lpips_net)
        evaluator = Evaluator.load(protocol, args.scale, args.lpips_weights, args.inception)
        files = [path for path in find_images(args.hr) if args.match in path.name]
        if args.sr:
            evaluate_folder(evaluator, files, args.sr, args.lr)
        else:
            from ldm_dream.upscaling.upscaler import Upscaler

            upscaler = Upscaler.from_pretrained(args.model, dtype=args.dtype)

            def upscale(lr: np.ndarray) -> np.ndarray:
                return upscaler(lr, scale=args.scale, steps=args.steps, color_fix=args.color_fix)

            evaluate_model(evaluator, files, args.lr, upscale, Path(args.model).name)
        report = evaluator.report()
        print(f"{args.hr} {args.match}")
        print(report_text(report))
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
