"""Upscale the bundled photo with the default model, score it beside bicubic, write before and after.

python tools/demo.py -o demo

The photo is made small and saved as a JPEG first, as the web does.
"""

import argparse
from pathlib import Path

from ldm_dream.cli import command_line, user_errors
from ldm_dream.upscaling.defaults import DEFAULT_MODEL
from ldm_dream.writing import check_outputs

PHOTO = Path(__file__).parent / "assets/coffee.png"  # CC0; see assets/README.md
QUALITY = 85  # of the JPEG, as many programs save
LOWER, HIGHER = "lower is better", "higher is better"
MEANING = {
    "gmsd": ("error of the edges; it counts blur, as the eye does", LOWER),
    "lpips": ("difference as a network sees it, which is close to what people see", LOWER),
    "psnr_y": ("error of the pixels in dB; it forgives blur", HIGHER),
    "ssim_y": ("likeness of small windows, at most 1", HIGHER),
    "consistency_x1e5": ("the result, shrunk again, against the small picture as it was", LOWER),
}


def build_parser() -> argparse.ArgumentParser:
    parser = command_line("demo.py", __doc__, is_tool=True)
    add = parser.add_argument
    add("-o", "--output", type=Path, default=Path("demo"), metavar="DIR", help="(default: demo)")
    model = "bundled model, model folder or hf:owner/name (default: %(default)s)"
    add("-n", "--model", default=DEFAULT_MODEL, help=model)
    weights = "AlexNet + LPIPS state dict (default: torchvision's cache)"
    add("--lpips-weights", type=Path, metavar="FILE", help=weights)
    return parser


def main() -> None:
    args = build_parser().parse_args()
    with user_errors():
        import numpy as np

        from ldm_dream import Upscaler
        from ldm_dream.data.images import Image, read_image, write_image
        from ldm_dream.scoring.evaluation import bicubic, low_resolution
        from ldm_dream.scoring.metrics import consistency, gmsd, lpips_or_reason, scores
        from ldm_dream.scoring.report import table

        names = ("lr.jpg", "after.png", "before-after.png")
        small, large, beside = targets = [args.output / name for name in names]
        model = Path(args.model)
        read = [PHOTO, *(model.rglob("*") if model.is_dir() else ())]
        check_outputs(targets, read + ([args.lpips_weights] if args.lpips_weights else []))
        lpips, why = lpips_or_reason(args.lpips_weights)
        hr = read_image(PHOTO).pixels
        lr = low_resolution(hr, 4)
        write_image(small, Image(lr), QUALITY)
        worn = read_image(small).pixels
        before, after = bicubic(worn, 4), Upscaler.from_pretrained(args.model)(worn, scale=4)
        write_image(large, Image(after))
        write_image(beside, Image(np.concatenate([before, after, hr], axis=1)))

        rows = {}
        for method, sr in (("bicubic", before), (args.model, after)):
            row = scores(sr, hr, 4, lpips)
            row |= {"gmsd": gmsd(sr, hr), "consistency_x1e5": 1e5 * consistency(sr, lr)}
            rows[method] = {name: row[name] for name in MEANING if name in row}
        theirs, ours = rows["bicubic"], rows[args.model]
        print(table(rows), end="\n\n")
        for name, (text, way) in MEANING.items():
            print(f"{name}: {text}; {way}" if name in ours else f"{name}: not computed: {why}")
        gain = {n: (theirs[n] - ours[n]) * (1 if MEANING[n][1] == LOWER else -1) for n in ours}
        better = [n for n in ours if gain[n] > 0]
        worse = [n for n in ours if n not in better]
        print(f"\nbetter than bicubic: {', '.join(better) or '-'}; not: {', '.join(worse) or '-'}")
        print(f"{beside}: bicubic x4 | {args.model} | original")


if __name__ == "__main__":
    main()
