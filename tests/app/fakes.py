"""Models that cost nothing, for tests of the page."""

import threading
import time
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import PIL.Image

from ldm_dream.errors import UserError
from ldm_dream.upscaling.watch import Stopped

CALLS = 4  # a tile


@dataclass
class Model:
    """Repeats pixels; `invert` makes negatives. seconds: of a call. tiles: it says it makes. gate: has
    to be opened for each picture.
    """

    scale: int = 2
    seconds: float = 0.0
    tiles: int = 1
    invert: bool = False
    gate: threading.Semaphore | None = None
    seen: list = field(default_factory=list)

    @property
    def engine(self):
        return SimpleNamespace(calls=self._calls, settled=lambda how: how)

    def _calls(self, how):
        if how.steps is not None and how.steps > 9:
            raise UserError(f"steps={how.steps} is not possible; give 1 to 9.")
        return CALLS

    def __call__(self, image, scale=None, callback=None, **options):
        self.seen.append((scale, options))
        if self.gate is not None:
            self.gate.acquire()
        total = CALLS * self.tiles
        for done in range(total + 1):
            if callback(done, total, self._preview) is False:
                raise Stopped(f"stopped after {done} of {total} network calls.")
            time.sleep(self.seconds)
        height, width = image.pixels.shape[:2]
        rows = np.arange(round(height * scale)) * height // round(height * scale)
        columns = np.arange(round(width * scale)) * width // round(width * scale)
        pixels = image.pixels[rows][:, columns]
        top = np.iinfo(pixels.dtype).max
        alpha = None if image.alpha is None else image.alpha[rows][:, columns]
        return replace(image, pixels=top - pixels if self.invert else pixels, alpha=alpha)

    def _preview(self):
        return PIL.Image.new("RGB", (64, 48), (200, 60, 60))
