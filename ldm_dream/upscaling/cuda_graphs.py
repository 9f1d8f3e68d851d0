"""CUDA graphs for sampling: a network call whose shapes come again and again is recorded once, then
replayed as one launch.

A sampler calls one network steps x tiles times with one shape, and small networks spend most of
such a call on launching kernels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

CALLS = 4  # of one shape before it is recorded: recording costs as many
KEPT = 4  # recordings; each holds the memory of one call. Further shapes are called as they are


class GraphedCall:
    """`call` without gradient: tensors (or pytrees of them) in, one tensor out. It must read
    nothing else that changes.

    Autocast must be the same at every call, and without its cache of weights (cache_enabled=False).
    """

    def __init__(self, call: Callable[..., Tensor]):
        self.call = call.__call__  # of a module given as it is, torch would replace forward
        self.calls: Counter[tuple] = Counter()
        self.graphs: dict[tuple, Callable[..., Any]] = {}  # torch says no more of their results

    def __call__(self, *inputs: Any) -> Tensor:
        leaves, structure = tree_flatten(inputs)
        key = (structure, *((leaf.shape, leaf.stride(), leaf.dtype) for leaf in leaves))
        if key not in self.graphs:
            self.calls[key] += 1
            if self.calls[key] <= CALLS or len(self.graphs) == KEPT:
                return self.call(*inputs)
            self.graphs[key] = torch.cuda.make_graphed_callables(
                self.call, tree_map_only(Tensor, torch.clone, inputs)
            )
        # the recording writes its one result again at the next call
        return self.graphs[key](*inputs).clone()
