"""Overlapping patches, each enlarged by itself and then merged: how papers evaluate models that were
trained on one size (DREAM, arXiv 2312.00210: patches of 40 with 5 pixels of overlap, and of 64 with 8).
`upscale`'s own tiles agree with each other after every network call (`upscaling/tiling.py`); these do not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ldm_dream.errors import UserError

Enlarge = Callable[[np.ndarray], np.ndarray]  # uint8 [h,w,3] -> uint8 [h k, w k, 3]


def in_patches(enlarge: Enlarge, side: int | None, overlap: int | None) -> Enlarge:
    """`enlarge`, of patches of `side` LR pixels with `overlap` between neighbours, means where they
    overlap; the last patch of a row reaches back as far as it must. side None: of whole pictures.
    Raises UserError for numbers that do not fit.
    """
    if side is None:
        if overlap is not None:
            raise UserError("--patch-overlap: has no effect without --patch; leave it out.")
        return enlarge
    shared = overlap or 0
    if shared >= side:
        raise UserError(f"--patch-overlap {shared} must be less than --patch {side}.")

    def merged(lr: np.ndarray) -> np.ndarray:
        total = weight = None
        for top in _starts(lr.shape[0], side, shared):
            for left in _starts(lr.shape[1], side, shared):
                patch = lr[top : top + side, left : left + side]
                sr = enlarge(patch)
                k = sr.shape[0] // patch.shape[0]
                if total is None or weight is None:
                    total = np.zeros((lr.shape[0] * k, lr.shape[1] * k, 3))
                    weight = np.zeros((*total.shape[:2], 1))
                there = np.s_[top * k : top * k + sr.shape[0], left * k : left * k + sr.shape[1]]
                total[there] += sr
                weight[there] += 1
        assert total is not None and weight is not None
        return (total / weight).round().astype(np.uint8)

    return merged


def _starts(length: int, side: int, overlap: int) -> list[int]:
    """Where patches begin that cover `length` pixels."""
    last = max(length - side, 0)
    return sorted({min(start, last) for start in range(0, length - overlap, side - overlap)} | {0})
