"""Which networks exist: `network.kind` of a config -> class. Adding one = a config class, a file here, a row in NETWORKS."""

from __future__ import annotations

import torch
from torch import nn

from ..config_models import NetworkConfig
from .idm import IDM, ImplicitDecoder, ResAttnBlock
from .resshift import ResBlock, ResShiftNet, SwinBlock

NETWORKS = {"resshift": ResShiftNet, "idm": IDM}
# compiled one by one: minutes less cold start than the whole network at once
REPEATED_BLOCKS = (ResBlock, SwinBlock, ResAttnBlock, ImplicitDecoder)


def build_network(cfg: NetworkConfig) -> nn.Module:
    """Network with fresh weights: `forward(z_t [B,C,h,w], t [B], cond [B,Cc,..]) -> [B,Cout,h,w]`; its class says what t and
    the size of cond are.

    Raises ValueError, naming the field, for a config that cannot be built.
    """
    return NETWORKS[cfg.kind](cfg)


def compile_blocks(network: nn.Module, backend: str = "inductor") -> int:
    """Regional torch.compile, in place: every repeated block, each for its own shapes. Returns how many; parameter names stay."""
    blocks = [module for module in network.modules() if isinstance(module, REPEATED_BLOCKS)]
    # all blocks share one code object, whose default limit of 8 versions would silently leave the later shapes uncompiled
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 8 * len(blocks))
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 8 * len(blocks))
    for block in blocks:
        block.compile(backend=backend, fullgraph=True, dynamic=False)
    return len(blocks)
