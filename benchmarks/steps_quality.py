"""Quality against the number of sampling steps: PSNR-Y, SSIM-Y and LPIPS of one or more models on
the same pictures and noise.
"""

from __future__ import annotations

from ldm_dream.config.data import DataConfig
from ldm_dream.data.images import from_tensor
from ldm_dream.data.pairs import validation_pairs
from ldm_dream.scoring.evaluation import PROTOCOL, bicubic, means
from ldm_dream.scoring.metrics import lpips_or_reason, scores
from ldm_dream.upscaling.upscaler import Upscaler

from .record import append

COLUMNS = ("psnr_y", "ssim_y", "lpips")


def main(args) -> None:
    lpips, reason = lpips_or_reason(args.lpips_weights)
    if lpips is None:
        print(f"no LPIPS: {reason}")
    upscalers = {name: Upscaler.from_pretrained(name, device=args.device) for name in args.model}
    scale = next(iter(upscalers.values())).run.scale
    pairs = validation_pairs(DataConfig(val=tuple(args.hr)), scale, 10**6, args.crop)
    pictures = [(name, from_tensor(hr), from_tensor(lr)) for name, hr, lr in pairs]
    rows = [
        {"method": "bicubic", "picture": n, **scores(bicubic(lr, scale), hr, scale, lpips)}
        for n, hr, lr in pictures
    ]
    for name, upscaler in upscalers.items():
        for steps in args.steps:
            for picture, hr, lr in pictures:
                sr = upscaler(lr, scale=scale, steps=steps, seed=0, color_fix=args.color_fix)
                rows.append(
                    {
                        "method": f"{name} {steps}",
                        "picture": picture,
                        **scores(sr, hr, scale, lpips),
                    }
                )
    averages = means(rows)
    print(
        f"{len(pictures)} pictures of {', '.join(args.hr)}, centre crop {args.crop}, color fix {args.color_fix}"
    )
    print(PROTOCOL.format(scale=scale))
    print(f"{'model, steps':44}" + "".join(f"{c:>10}" for c in COLUMNS))
    for method, row in averages.items():
        print(
            f"{method:44}"
            + "".join(f"{row[c]:10.4f}" if c in row else f"{'-':>10}" for c in COLUMNS)
        )
    append(
        args.json,
        [
            {"benchmark": "steps-quality", "method": m, "pictures": args.hr, **row}
            for m, row in averages.items()
        ],
    )
