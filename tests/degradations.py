"""Blind degradations that change nearly nothing, and a picture on which a shift shows."""

from __future__ import annotations

import numpy as np

from ldm_dream.config.data import BlindConfig, FirstOrder, SecondOrder

CLEAN = {
    "blur_prob": 0,
    "resize_weights": (0, 0, 1),
    "gaussian_noise_prob": 1,
    "gaussian_sigma": (0, 0),
    "jpeg_quality": (100, 100),
}
HARMLESS = BlindConfig(
    first=FirstOrder(**CLEAN), second=SecondOrder(**CLEAN), second_order_prob=0, final_sinc_prob=0
)


def smooth(height: int, width: int) -> np.ndarray:
    """uint8 [H,W,3]: slow waves without symmetry, so that a shift or turn of one LR pixel shows."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + y / 21), np.sin(y / 11 - x / 33), np.cos((x + y) / 15)]
    return (127.5 + 120 * np.stack(waves, -1)).astype(np.uint8)
