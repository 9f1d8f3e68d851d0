"""Golden runner of ResShift's Swin U-Net (resshift_unet, resshift_unet_lq2x), from the case's
constructor arguments alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from golden.reading import Case, watching
from ldm_dream.config.networks import ResShiftNetConfig
from ldm_dream.interchange.published import translate
from ldm_dream.interchange.systems import RESSHIFT
from ldm_dream.networks import build_network
from ldm_dream.networks.resshift import SwinLayer
from runs import predict

SAME = (
    "image_size",
    "in_channels",
    "out_channels",
    "model_channels",
    "channel_mult",
    "num_res_blocks",
    "attention_resolutions",
)
SAME += ("dropout", "swin_depth", "swin_embed_dim", "window_size", "mlp_ratio")


def config(kwargs: Case) -> ResShiftNetConfig:
    """Constructor arguments of the official class -> our config. The condition is RGB, plus a mask
    channel with `cond_mask`.
    """
    kwargs.only(conv_resample=True, dims=2, use_fp16=False, resblock_updown=False)
    kwargs.only(use_scale_shift_norm=True)
    kwargs.known("lq_size", "cond_mask")  # read where there is a condition
    channels, heads = kwargs["num_head_channels"], kwargs.get("num_heads", 1)
    return ResShiftNetConfig(
        num_head_channels=kwargs["swin_embed_dim"] // heads if channels == -1 else channels,
        **{name: kwargs[name] for name in SAME},
        cond_channels=3 + bool(kwargs.get("cond_mask")) if kwargs["cond_lq"] else 0,
        cond_factor=kwargs["lq_size"] // kwargs["image_size"] if kwargs["cond_lq"] else 1,
        legacy_mask=True,
    )


def run(case: Case, io: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """-> out_<i> for every item; hook.<name>_0 for the intermediates of item 0."""
    case["construct"].only(**{"class": "UNetModelSwin"})
    network = build_network(config(case["construct"]["kwargs"])).eval()
    network.load_state_dict(translate(RESSHIFT, weights), strict=True)
    swin = next(module for module in network.modules() if isinstance(module, SwinLayer))
    watched = {
        "time_embed": network.time_embed,
        "input_blocks.0": network.input_blocks[0],
        "middle_block": network.middle_block,
    }
    watched |= {"first_basiclayer": swin, "first_basiclayer.blocks.0": swin.blocks[0]}
    if len(swin.blocks) > 1:
        watched["first_basiclayer.blocks.1_shifted"] = swin.blocks[1]

    outputs: dict[str, Tensor] = {}
    for i in range(case["n_items"]):
        x, t = io[f"in.x_{i}"], io[f"in.t_{i}"]
        cond = io.get(f"in.lq_{i}", x[:, :0])
        if f"in.mask_{i}" in io:
            cond = torch.cat([cond, io[f"in.mask_{i}"]], 1)
        with torch.no_grad(), watching(watched if i == 0 else {}) as seen:
            outputs[f"out_{i}"] = predict(network, x, t, cond)
        outputs |= {f"hook.{name}_0": value for name, value in seen.items()}
    return outputs
