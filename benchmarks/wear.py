"""How models stand four kinds of wear: LPIPS and PSNR-Y of the same pictures, made small and worn
in four ways with fixed random numbers, beside bicubic.

    clean   MATLAB's bicubic, nothing else
    jpeg75  the same, saved as JPEG 75
    web40   saved as JPEG 60 half as large again, shrunk, sharpened, saved as JPEG 40
    camera  blurred (1 to 3 HR pixels), shrunk, noise of 3 to 10 levels, JPEG 65 to 90
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from ldm_dream.config.data import DataConfig
from ldm_dream.data.blind import degrade_as_planned
from ldm_dream.data.blind_plan import Compress, Noise, Plan, Resize, Sharpen, Step
from ldm_dream.data.blur import gaussian_kernel
from ldm_dream.data.images import from_tensor
from ldm_dream.data.resize import upsample
from ldm_dream.data.validation import validation_pairs
from ldm_dream.dtypes import name_of
from ldm_dream.scoring.evaluation import PROTOCOL, bicubic
from ldm_dream.scoring.metrics import lpips_distance, lpips_or_reason, psnr
from ldm_dream.scoring.report import means
from ldm_dream.upscaling.colors import COLOR_FIXES
from ldm_dream.upscaling.upscaler import Upscaler

from .choices import WEARS
from .record import Measured
from .tables import finish

Size = tuple[int, int]  # height, width
Wear = Callable[[Size, np.random.Generator], list[Step]]  # of the LR picture -> from HR to it
Method = tuple[str, int | None, str]  # model, steps (None: its own), colour fix
Pixels = np.ndarray  # uint8 [H,W,3]


def clean(size: Size, random: np.random.Generator) -> list[Step]:
    return [Resize(size, "matlab_bicubic")]


def jpeg75(size: Size, random: np.random.Generator) -> list[Step]:
    return [*clean(size, random), Compress("jpeg", 75)]


def web40(size: Size, random: np.random.Generator) -> list[Step]:
    larger = size[0] * 3 // 2, size[1] * 3 // 2
    return [
        Resize(larger, "pillow_lanczos"),
        Compress("jpeg", 60),
        Resize(size, "pillow_lanczos"),
        Sharpen(gaussian_kernel(7, (1.0, 1.0)), 0.5),
        Compress("jpeg", 40),
    ]


def camera(size: Size, random: np.random.Generator) -> list[Step]:
    sigma = random.uniform(1, 3)
    kernel = gaussian_kernel(21, (sigma, sigma))
    noise = Noise("gaussian", random.uniform(3, 10), False)
    quality = int(random.integers(65, 91))
    return [Resize(size, "matlab_bicubic", kernel), noise, Compress("jpeg", quality)]


PLANS: dict[str, Wear] = {w.__name__: w for w in (clean, jpeg75, web40, camera)}


def worn(hr: Tensor, scale: int, number: int) -> dict[str, Tensor]:
    """Picture `number`: hr [1,3,H,W] in [-1, 1] -> its LR picture after each wear, likewise, on the
    256 levels.
    """
    size = hr.shape[-2] // scale, hr.shape[-1] // scale
    plans = [
        Plan(tuple(PLANS[wear](size, np.random.default_rng((number, i)))), number)
        for i, wear in enumerate(WEARS)
    ]
    made = degrade_as_planned((hr.expand(len(plans), -1, -1, -1) + 1) / 2, plans)
    return {name: lr[None] * 2 - 1 for name, lr in zip(WEARS, made)}


def main(args) -> None:
    lpips, reason = lpips_or_reason(args.lpips_weights)
    if lpips is None:
        print(f"no LPIPS: {reason}")
    upscalers = {name: Upscaler.from_pretrained(name, device=args.device) for name in args.model}
    scale = next(iter(upscalers.values())).scale if upscalers else 4
    pairs = validation_pairs(DataConfig(val=tuple(args.hr)), scale, args.limit, args.crop)
    scored = []
    for number, (picture, hr, _) in enumerate(pairs):
        truth, found = from_tensor(hr), {}
        for wear, lr in worn(hr, scale, number).items():
            for method, sr in _results(upscalers, lr, scale, args).items():
                figures = found.setdefault(method, {})
                figures[f"psnr_y/{wear}"] = psnr(sr, truth, channel="y", crop_border=scale)
                if lpips is not None:
                    figures[f"lpips/{wear}"] = lpips_distance(lpips, sr, truth)
        scored += [{"method": m, "picture": picture, **figures} for m, figures in found.items()]
    dtypes = {name: name_of(upscaler.dtype) for name, upscaler in upscalers.items()}
    rows = []
    for (name, steps, fix), metrics in means(scored).items():
        asked = {"pictures": args.hr, "count": len(pairs), "crop": args.crop}
        asked |= {"steps": steps, "color_fix": fix, "dtype": dtypes.get(name, "fp32")}
        rows.append(Measured(name, f"{steps or 'default'} steps, {fix}", asked, metrics))
    print(f"{len(pairs)} pictures; {PROTOCOL.format(scale=scale)}")
    finish(args, "wear", rows)


def _results(upscalers: dict[str, Upscaler], lr: Tensor, scale: int, args) -> dict[Method, Pixels]:
    """lr [1,3,h,w] in [-1, 1] -> results of bicubic and of every model, number of steps and colour
    fix. A fix is put on the one result of a model, clipped to [-1, 1].
    """
    base = upsample(lr, (lr.shape[-2] * scale, lr.shape[-1] * scale))
    results: dict[Method, Pixels] = {("bicubic", None, "none"): bicubic(from_tensor(lr), scale)}
    for name, upscaler in upscalers.items():
        for steps in args.steps or [None]:
            sr = upscaler((lr + 1) / 2, scale=scale, steps=steps, seed=0, color_fix="none")
            pair = sr * 2 - 1, base
            for fix in args.color_fix:
                results[name, steps, fix] = from_tensor(
                    COLOR_FIXES[fix](lambda pair=pair: [pair])(*pair)
                )
    return results
