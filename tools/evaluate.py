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
from ldm_dream.errors import UserError
from ldm_dream.writing import check_outputs, whole_file


def build_parser() -> argparse.ArgumentParser:
    parser = command_line("evaluate.py", __doc__)
    add = parser.add_argument
    add("--hr", type=Path, required=True, metavar="DIR", help="original pictures")
    add("--match", default="", metavar="TEXT", help="only pictures whose name holds this")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--sr", type=Path, metavar="DIR", help="results, named as the originals (see --suffix)"
    )
    what.add_argument("-n", "--model", help="bundled model, model folder or hf:owner/name to run")
    add(
        "--lr",
        type=Path,
        metavar="DIR",
        help="LR pictures, named as the originals (default: bicubic from --hr; with --sr: none)",
    )
    add(
        "--scale",
        type=int,
        metavar="N",
        help="HR over LR size, and the border that is cut (default: the model's; with --sr: 4)",
    )
    add(
        "--suffix",
        metavar="TEXT",
        help="of the names in --sr, e.g. _x4 (default: none, or the only one that fits all)",
    )
    add("--steps", type=int, metavar="N", help="sampling steps (default: the model's)")
    add(
        "--color-fix",
        choices=("none", "wavelet", "adain"),
        help="(default: wavelet; dream-legacy: none)",
    )
    add("--dtype", choices=("auto", "fp32", "bf16", "fp16"), help="(default: auto)")
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


def refuse_ignored(args: argparse.Namespace) -> None:
    """What only a model, or only a folder of results, reads."""
    names = ("steps", "color_fix", "dtype") if args.sr else ("suffix",)
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None]
    if given:
        other = "-n MODEL, not for the results of --sr" if args.sr else "--sr, not for a model"
        raise UserError(f"{' and '.join(given)}: for {other}; leave it out.")


def inputs_of(args: argparse.Namespace) -> list[Path]:
    """Files that are read, and so may not be written."""
    from ldm_dream.data.images import find_images

    model = Path(args.model or "")
    files = list(model.rglob("*")) if args.model and model.is_dir() else []
    for folder in filter(None, (args.hr, args.sr, args.lr)):
        files += find_images(folder)
    return files + list(filter(None, (args.lpips_weights, args.inception)))


def main() -> None:
    args = build_parser().parse_args()
    with user_errors():
        import numpy as np

        from ldm_dream.scoring import evaluation, report

        refuse_ignored(args)
        check_outputs([args.json] if args.json else [], inputs_of(args))
        files = evaluation.find_originals(args.hr, args.match)
        protocol = evaluation.PROTOCOLS[args.protocol]
        if args.lpips_net:
            protocol = replace(protocol, lpips_net=args.lpips_net)
        weights = args.lpips_weights, args.inception
        if args.sr:
            evaluator = evaluation.Evaluator.load(protocol, args.scale or 4, *weights)
            evaluation.evaluate_folder(evaluator, files, args.sr, args.lr, args.suffix)
        else:
            from ldm_dream.upscaling.upscaler import Upscaler

            upscaler = Upscaler.from_pretrained(args.model, dtype=args.dtype or "auto")
            scale = upscaler.run.scale if args.scale is None else args.scale
            fix = args.color_fix or protocol.color_fix

            def upscale(lr: np.ndarray) -> np.ndarray:
                return upscaler(lr, scale=scale, steps=args.steps, color_fix=fix)

            evaluator = evaluation.Evaluator.load(protocol, scale, *weights)
            evaluator.notes.append(f"{args.model} ran with the colour fix {fix}.")
            evaluation.evaluate_model(evaluator, files, args.lr, upscale, Path(args.model).name)
        found = evaluator.report()
        print(f"{args.hr} {args.match}")
        print(report.report_text(found))
        if args.json:
            with whole_file(args.json) as draft:
                draft.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
