"""Patches that are enlarged one by one and merged."""

import numpy as np
import pytest

from ldm_dream.errors import UserError
from ldm_dream.scoring.patches import in_patches


def nearest(lr: np.ndarray) -> np.ndarray:
    return lr.repeat(4, 0).repeat(4, 1)


@pytest.mark.parametrize("shape", [(40, 40), (75, 110), (41, 39), (7, 200)])
@pytest.mark.parametrize("side, overlap", [(40, 5), (64, 8), (40, None)])
def test_what_looks_at_one_pixel_is_as_of_the_whole_picture(shape, side, overlap):
    lr = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    assert np.array_equal(in_patches(nearest, side, overlap)(lr), nearest(lr))


def test_patches_have_the_papers_side_and_overlap_and_means_are_taken_there():
    seen = []

    def numbered(lr):
        seen.append(lr[0, 0, 0])
        return np.full((*nearest(lr).shape[:2], 3), 10 * len(seen), np.uint8)

    lr = np.zeros((40, 75, 3), np.uint8)
    lr[0, :, 0] = np.arange(75)
    sr = in_patches(numbered, 40, 5)(lr)
    assert seen == [0, 35]
    row = sr[0, :, 0]
    assert (row[:140] == 10).all() and (row[140:160] == 15).all() and (row[160:] == 20).all()


def test_numbers_that_do_not_fit_are_refused():
    assert in_patches(nearest, None, None) is nearest
    with pytest.raises(UserError, match="no effect without --patch"):
        in_patches(nearest, None, 5)
    with pytest.raises(UserError, match="--patch-overlap 8 must be less than --patch 8"):
        in_patches(nearest, 8, 8)
