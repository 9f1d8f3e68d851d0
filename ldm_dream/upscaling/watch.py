"""Watch: how far the work is, told to who asked for it, and a way to stop.

A callback hears of every finished network call, and up to ten times a second while one is on its way,
since a call may take seconds on a CPU. It stops the work by returning False.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ldm_dream.errors import UserError
from ldm_dream.upscaling.devices import UpscaleError

BETWEEN = 0.1  # seconds between two calls of the callback while a network is on its way
PREVIEW = 512  # pixels of the longer side of a preview, at most
QUICK = 256  # the same, where a network makes it: it must not take longer than a stop may

# what a preview is made of: [B, 3, h, w] in about [-1, 1], or nothing yet
Look = Callable[[], Tensor | None]
# a view of all that a model makes -> the picture in it, without the context around
Crop = Callable[[Tensor], Tensor]
# done and total network calls, and the picture as far as it is: made when called, None where there
# is nothing to see yet
Callback = Callable[[int, int, Callable[[], PIL.Image.Image | None]], bool | None]


class Stopped(UserError):
    """The callback said so; nothing was written."""


class Watch:
    """Counts network calls a tile, of several pictures one after another.

    callback: None = nobody listens. Raises UpscaleError for one that is no function.
    """

    def __init__(self, callback: Callback | None = None):
        if callback is not None and not callable(callback):
            raise UpscaleError(f"callback={callback!r}: is no function; see docs/python.md.")
        self.callback, self.done, self.total = callback, 0, 0
        self.before, self.ahead = 0, 0  # calls of earlier pictures, and of later ones
        self.look: Look = lambda: None
        self.crop: Crop = lambda seen: seen
        self.told = time.monotonic()

    def next_picture(self, ahead: int) -> None:
        """ahead: calls of those after it."""
        self.before, self.ahead = self.done, ahead

    def look_ahead(self, total: int) -> None:
        """total: calls of the pictures that were looked at so far, before any is begun."""
        self.total = total
        self.ask()

    def begin(self, total: int, look: Look, crop: Crop) -> None:
        """A picture, or the same one anew in smaller tiles. look: what is finished of it. crop: to
        be done to all better views.
        """
        self.done, self.total = self.before, self.before + total + self.ahead
        self.look, self.crop = look, crop
        self._tell()

    def add(self, count: int, look: Callable[[], Tensor] | None = None) -> None:
        """count more calls are done. look: a better view than what is finished, [B, 3, h, w]."""
        self.done += count
        if look:
            crop = self.crop
            self.look = cache(lambda: crop(look()))
        self._tell()

    def counts(self, fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`fn`, whose calls count, a tile each."""

        def counted(*inputs: Any) -> Tensor:
            made = fn(*inputs)
            self.add(len(made))
            return made

        return counted

    def listening(self, within: bool) -> AbstractContextManager[object]:
        """During the body, the callback is also asked up to ten times a second. within: also inside of
        the networks, which must not be compiled or recorded then.
        """
        return _Between(self) if self.callback and within else nullcontext()

    def ask(self) -> None:
        """Tells again, unless that was a moment ago."""
        if time.monotonic() - self.told > BETWEEN:
            self._tell()

    def _tell(self) -> None:
        self.told = math.inf  # the callback may look, which calls torch, which would ask again
        if self.callback and self.callback(self.done, self.total, self._preview) is False:
            raise Stopped(f"stopped after {self.done} of {self.total} network calls.")
        self.told = time.monotonic()

    def _preview(self) -> PIL.Image.Image | None:
        """The first picture, at most PREVIEW pixels a side."""
        seen = self.look()
        if seen is None:
            return None
        step = -(-max(seen.shape[-2:]) // PREVIEW)
        small = seen[0, :, ::step, ::step].float().clamp(-1, 1).add(1).mul(127.5).round()
        pixels = small.to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        return PIL.Image.fromarray(np.ascontiguousarray(pixels))


class _Between(TorchFunctionMode):
    """Asks the watch before each call of torch, in this thread alone."""

    def __init__(self, watch: Watch):
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.watch.ask()
        return func(*args, **(kwargs or {}))
