"""Golden runner of PSNR, SSIM, Y, tensor2img and consistency against BasicSR, SR3 and DREAM."""

from __future__ import annotations

import math
import re

import numpy as np
import torch
from torch import Tensor

from golden.reading import Case
from ldm_dream.data.images import from_tensor
from ldm_dream.scoring.metrics import consistency, downsample, gaussian_window, luma, psnr, ssim

PT_EPSILON = 1e-8  # BasicSR's psnr_pt adds it to the error in [0, 1] units


def run(case: Case, io: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor | float]:
    """-> every `out.<i>.<source>.<metric>` named in `io`; float32 variants (`_pt`) follow from the
    float64 values.
    """
    case["construct"].known("scale")  # of the pictures, which have their sizes
    outputs = {"gaussian_window_1d": torch.from_numpy(gaussian_window())[:, None]}
    for i in sorted(key.removeprefix("in.hr_") for key in io if key.startswith("in.hr_")):
        hr, sr, lr = (io[f"in.{name}_{i}"].numpy() for name in ("hr", "sr", "lr"))
        protocols = {re.match(rf"out\.{i}\.(basicsr\.crop(\d+)\.(RGB|Y))\.", key) for key in io} - {
            None
        }
        for prefix, crop, channel in {match.groups() for match in protocols}:
            decibel = psnr(sr, hr, channel=channel.lower(), crop_border=int(crop))
            similarity = ssim(sr, hr, channel=channel.lower(), crop_border=int(crop))
            outputs[f"{i}.{prefix}.psnr"] = decibel
            outputs[f"{i}.{prefix}.ssim"] = similarity
            outputs[f"{i}.{prefix}.psnr_pt"] = -10 * math.log10(10 ** (-decibel / 10) + PT_EPSILON)
            outputs[f"{i}.{prefix}.ssim_pt"] = similarity
        outputs[f"{i}.y_channel_hr"] = torch.from_numpy(luma(hr))
        outputs[f"{i}.sr3.psnr"] = psnr(sr, hr, channel="rgb", crop_border=0)
        outputs[f"{i}.sr3.ssim"] = ssim(sr, hr, channel="rgb", crop_border=0)
        green = (
            np.repeat(picture[..., 1:2], 3, axis=2) for picture in (sr, hr)
        )  # the stored grey case is the middle channel
        outputs[f"{i}.sr3.ssim_gray"] = ssim(*green, channel="rgb", crop_border=0)
        outputs[f"{i}.sr3.tensor2img"] = torch.from_numpy(from_tensor(io[f"in.tensor_{i}"][None]))
        outputs[f"{i}.dream.consistency_x1e5"] = 1e5 * consistency(sr, lr)
        outputs[f"{i}.dream.consistency_of_hr_x1e5"] = 1e5 * consistency(hr, lr)
        outputs[f"{i}.dream.sr_downsampled_uint8"] = torch.from_numpy(
            downsample(sr, *lr.shape[:2]).copy()
        )
    return outputs
