"""Which networks exist: `network.kind` of a config -> class. Adding one = a config class, a file
here, a row in NETWORKS.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ldm_dream.config.networks import NetworkConfig
from ldm_dream.networks import idm, ldm, resshift, sr3
from ldm_dream.networks.base import Network

NETWORKS: dict[str, type[Network]] = {
    "resshift": resshift.ResShiftNet,
    "sr3": sr3.SR3Net,
    "idm": idm.IDM,
    "ldm": ldm.LDMNet,
}


def build_network(cfg: NetworkConfig) -> Network:
    """Network with fresh weights."""
    return NETWORKS[cfg.kind](cfg)


def recompute_blocks(network: Network) -> None:
    """Gradient checkpointing, in place: each of `network.repeated_blocks` keeps its input alone and is
    computed again, with the same dropout, in the backward pass (arXiv 1604.06174).
    """
    for module in network.modules():
        if isinstance(module, network.repeated_blocks):
            module.forward = _recomputed(module.forward)


def _recomputed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of this file: the compiler passes by those that begin in torch's own."""

    def again(*inputs: Tensor) -> Tensor:
        return checkpoint(forward, *inputs, use_reentrant=False)

    return again


def compile_blocks(network: Network, dynamic: bool = False, backend: str = "inductor") -> int:
    """Regional torch.compile, in place: every one of `network.repeated_blocks` as one graph, which
    saves minutes of cold start. Returns how many; parameter names stay.

    dynamic: one version for every height and width (upscaling), else one for each shape, which is
    faster (training).
    """
    blocks = [module for module in network.modules() if isinstance(module, network.repeated_blocks)]
    # all blocks share one code object, whose default limit of 8 versions would silently leave the
    # later shapes uncompiled
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 8 * len(blocks))
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 8 * len(blocks))
    for block in blocks:
        block.compile(backend=backend, fullgraph=True, dynamic=dynamic)
    return len(blocks)
