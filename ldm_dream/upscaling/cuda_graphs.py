"""CUDA graphs for sampling: a network call whose shapes come again and again is recorded once, then
replayed as one launch.

A sampler calls one network steps x tiles times with one shape, and small networks spend most of
such a call on launching kernels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

CALLS = 4  # of one shape before it is recorded: recording costs as many
KEPT = 4  # recordings; further shapes are called as they are


class GraphedCall:
    """`call` without gradient: tensors (or pytrees of them) in, one tensor out. It must read
    nothing else that changes.

    Recordings share one pool of memory, since one is played at a time and its result copied out.
    Autocast must be the same at every call, and without its cache of weights (cache_enabled=False).
    """

    def __init__(self, call: Callable[..., Tensor]):
        self.call = call.__call__  # of a module given as it is, torch would replace forward
        self.calls: Counter[tuple] = Counter()
        self.graphs: dict[tuple, Callable[..., Any]] = {}  # torch says no more of their results
        self.kept = KEPT
        self.began = False  # to record

    def __call__(self, *inputs: Any) -> Tensor:
        leaves, structure = tree_flatten(inputs)
        key = (structure, *((leaf.shape, leaf.stride(), leaf.dtype) for leaf in leaves))
        # recorded and played on the inputs' device, whichever is the current one
        with torch.cuda.device_of(leaves[0]):
            if key not in self.graphs:
                self.calls[key] += 1
                if self.calls[key] <= CALLS or len(self.graphs) >= self.kept:
                    return self.call(*inputs)
                self.began = True
                self.graphs[key] = torch.cuda.make_graphed_callables(
                    self.call, tree_map_only(Tensor, torch.clone, inputs), pool=self.pool
                )
            # the recording writes its one result again at the next call
            return self.graphs[key](*inputs).clone()

    @cached_property
    def pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def drop(self) -> bool:
        """Gives the recordings' memory back, and records no more; -> whether it had begun to."""
        began, self.began, self.kept = self.began, False, 0
        self.graphs.clear()
        torch.cuda.empty_cache()
        return began
