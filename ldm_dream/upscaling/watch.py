"""Watch: how far a picture is, told to who asked for it, and a way to stop.

A callback hears of every finished network call, and a few times a second while one is on its way,
since a call may take seconds on a CPU. It stops the work by returning False.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn

from ldm_dream.errors import UserError

BETWEEN = 0.2  # seconds between two calls of the callback while a network is on its way
PREVIEW = 512  # pixels of the longer side of a preview

# what a preview is made of: [B, 3, h, w] in about [-1, 1], or nothing yet
Look = Callable[[], Tensor | None]
# done, total, and the picture as far as it is: made when called, None where there is nothing to see
Callback = Callable[[int, int, Callable[[], PIL.Image.Image | None]], bool | None]


class Stopped(UserError):
    """The callback said so; nothing was written."""


class Watch:
    """Counts network calls a tile. callback: None = nobody listens."""

    def __init__(self, callback: Callback | None = None):
        self.callback, self.done, self.total = callback, 0, 0
        self.look: Look = lambda: None
        self.told = time.monotonic()

    def begin(self, total: int, look: Look) -> None:
        """A picture, or the same one anew in smaller tiles. look: what is finished of it."""
        self.done, self.total, self.look = 0, total, look
        self._tell()

    def add(self, count: int, look: Look | None = None) -> None:
        """count more calls are done. look: a better view than what is finished."""
        self.done += count
        if look:
            self.look = look
        self._tell()

    def counts(self, fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`fn`, whose calls count, a tile each."""

        def counted(*inputs: Any) -> Tensor:
            made = fn(*inputs)
            self.add(len(made))
            return made

        return counted

    @contextmanager
    def listening(self, modules: tuple[nn.Module, ...]) -> Iterator[None]:
        """During the body, a call of one of `modules` can be stopped between its layers."""
        layers = {layer for module in modules for layer in module.modules()}
        hooks = [
            layer.register_forward_pre_hook(self._between) for layer in layers if self.callback
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _between(self, layer: nn.Module, inputs: Any) -> None:
        if time.monotonic() - self.told > BETWEEN:
            self._tell()

    def _tell(self) -> None:
        if self.callback and self.callback(self.done, self.total, self._preview) is False:
            raise Stopped(f"stopped after {self.done} of {self.total} network calls.")
        self.told = time.monotonic()

    def _preview(self) -> PIL.Image.Image | None:
        """The first picture, at most PREVIEW pixels a side."""
        # the look may call a network, whose layers ask again
        told, self.told = self.told, float("inf")
        try:
            seen = self.look()
        finally:
            self.told = told
        if seen is None:
            return None
        step = -(-max(seen.shape[-2:]) // PREVIEW)
        small = seen[0, :, ::step, ::step].float().clamp(-1, 1).add(1).mul(127.5).round()
        pixels = small.to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        return PIL.Image.fromarray(np.ascontiguousarray(pixels))
