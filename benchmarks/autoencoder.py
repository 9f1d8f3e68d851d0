"""Reconstruction by an autoencoder: PSNR, SSIM, LPIPS, codes in use, seconds. The ceiling of what a
latent model can reach.
"""

from __future__ import annotations

import time

import torch

from ldm_dream.data.images import find_images, from_tensor, read_image, to_tensor
from ldm_dream.model_config import find_model, read_run
from ldm_dream.model_folder import load_autoencoder
from ldm_dream.networks.vqgan import VQGAN
from ldm_dream.scoring.evaluation import PROTOCOL
from ldm_dream.scoring.metrics import lpips_or_reason, scores
from ldm_dream.scoring.report import means

from .peer_scores import cut_distance
from .record import Measured
from .tables import finish

BORDER = 4


@torch.no_grad()
def main(args) -> None:
    lpips, reason = lpips_or_reason(args.lpips_weights)
    if lpips is None:
        print(f"no LPIPS: {reason}")
    device = torch.device(args.device)
    cfg = read_run(find_model(args.model)).autoencoder.model_copy(update={"pretrained": args.model})
    autoencoder = load_autoencoder(cfg).to(device)
    scored, used = [], set()
    for path in (p for folder in args.hr for p in find_images(folder) if args.match in p.name):
        x = to_tensor(read_image(path)).to(device)
        height, width = (side // autoencoder.factor * autoencoder.factor for side in x.shape[-2:])
        x = x[..., :height, :width].contiguous(memory_format=torch.channels_last)
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=args.dtype == "bf16"):
            z = autoencoder.encode(x).float()
            y = autoencoder.decode(z).float()
        seconds = time.perf_counter() - start
        if isinstance(autoencoder, VQGAN):
            used |= set(
                autoencoder.quantize(z / autoencoder.latent_scale).indices.unique().tolist()
            )
        sr, hr = from_tensor(y.cpu()), from_tensor(x.cpu())
        figures = scores(sr, hr, BORDER, lpips)
        if lpips is not None:
            figures["lpips_cut"] = cut_distance(lpips, sr, hr)
        scored.append({"picture": path.stem, "method": args.model, "seconds": seconds, **figures})
    worst = min(row["psnr_y"] for row in scored)
    metrics = {**means(scored)[args.model], "pictures": len(scored), "worst_psnr_y": worst}
    if isinstance(autoencoder, VQGAN):
        metrics |= {"codes_used": len(used), "codes": len(autoencoder.quantize.embedding.weight)}
    print(f"{len(scored)} pictures; {PROTOCOL.format(scale=BORDER)}")
    settings = {"pictures": args.hr, "match": args.match, "dtype": args.dtype}
    finish(args, "autoencoder", [Measured(args.model, args.dtype, settings, metrics)])
