"""Which networks exist: `network.kind` of a config -> class. Adding one = a config class, a file
here, a row in NETWORKS.
"""

from __future__ import annotations

import torch
from torch import nn

from ldm_dream.config.networks import NetworkConfig
from ldm_dream.networks import idm, ldm, resshift, sr3

NETWORKS = {"resshift": resshift.ResShiftNet, "sr3": sr3.SR3Net, "idm": idm.IDM, "ldm": ldm.LDMNet}
# compiled one by one: minutes less cold start than the whole network at once
REPEATED_BLOCKS = (
    resshift.ResBlock,
    resshift.SwinBlock,
    sr3.Block,
    idm.ResAttnBlock,
    idm.ImplicitDecoder,
)
REPEATED_BLOCKS += (ldm.ResBlock, ldm.Attention)


def build_network(cfg: NetworkConfig) -> nn.Module:
    """Network with fresh weights: `forward(z_t [B,C,h,w], t [B], cond [B,Cc,h*k,w*k]) ->
    [B,Cout,h,w]`, k = `cfg.cond_factor`.

    t is the int64 timestep, or the float noise level where the class says `sees_noise_level`.
    `multiple`: h and w in multiples of it need no padding inside. forward also takes `embed(t)` in
    place of t: all that its blocks are told of t, made once. Where a network has
    `reset_parameters`, training begins with it; where it has `prepare(cond, hw)`, forward also
    takes what that returns in place of cond: made once, used at many t.

    Raises ValueError, naming the field, for a config that cannot be built.
    """
    return NETWORKS[cfg.kind](cfg)


def compile_blocks(network: nn.Module, dynamic: bool = False, backend: str = "inductor") -> int:
    """Regional torch.compile, in place: every repeated block as one graph. Returns how many;
    parameter names stay.

    dynamic: one version for every height and width (upscaling), else one for each shape, which is
    faster (training).
    """
    blocks = [module for module in network.modules() if isinstance(module, REPEATED_BLOCKS)]
    # all blocks share one code object, whose default limit of 8 versions would silently leave the
    # later shapes uncompiled
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 8 * len(blocks))
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 8 * len(blocks))
    for block in blocks:
        block.compile(backend=backend, fullgraph=True, dynamic=dynamic)
    return len(blocks)
