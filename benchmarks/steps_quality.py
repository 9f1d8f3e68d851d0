"""Quality against the number of sampling steps: PSNR-Y, SSIM-Y and LPIPS of one or more models on
the same pictures and noise.
"""

from __future__ import annotations

from ldm_dream.config.data import DataConfig
from ldm_dream.data.images import from_tensor
from ldm_dream.data.validation import validation_pairs
from ldm_dream.dtypes import name_of
from ldm_dream.scoring.evaluation import PROTOCOL, bicubic
from ldm_dream.scoring.metrics import lpips_or_reason, scores
from ldm_dream.scoring.report import means
from ldm_dream.upscaling.upscaler import Upscaler

from .record import Measured
from .tables import finish

BICUBIC = ("bicubic", None)  # in place of a model and its steps


def main(args) -> None:
    lpips, reason = lpips_or_reason(args.lpips_weights)
    if lpips is None:
        print(f"no LPIPS: {reason}")
    upscalers = {name: Upscaler.from_pretrained(name, device=args.device) for name in args.model}
    scale = next(iter(upscalers.values())).scale
    pairs = validation_pairs(DataConfig(val=tuple(args.hr)), scale, 10**6, args.crop)
    pictures = [(name, from_tensor(hr), from_tensor(lr)) for name, hr, lr in pairs]
    scored = [
        {"method": BICUBIC, "picture": name, **scores(bicubic(lr, scale), hr, scale, lpips)}
        for name, hr, lr in pictures
    ]
    for name, upscaler in upscalers.items():
        for steps in args.steps:
            for picture, hr, lr in pictures:
                sr = upscaler(lr, scale=scale, steps=steps, seed=0, color_fix=args.color_fix)
                figures = scores(sr, hr, scale, lpips)
                scored.append({"method": (name, steps), "picture": picture, **figures})
    dtypes = {name: name_of(upscaler.dtype) for name, upscaler in upscalers.items()}
    rows = []
    for (name, steps), metrics in means(scored).items():
        asked = {"pictures": args.hr, "crop": args.crop, "color_fix": args.color_fix}
        asked |= {"steps": steps, "dtype": dtypes.get(name, "fp32")}
        variant = f"{steps} steps" if steps else name
        rows.append(Measured(name, variant, asked, metrics))
    print(f"{len(pictures)} pictures; {PROTOCOL.format(scale=scale)}")
    finish(args, "steps-quality", rows)
