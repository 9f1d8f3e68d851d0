"""Scores of folders and models, and what cannot be compared."""

import numpy as np
import pytest
from runs import pictures

from ldm_dream.data.images import find_images
from ldm_dream.evaluation import EvaluationError, bicubic, evaluate_folder, evaluate_model, means, table


def test_a_folder_against_itself_is_perfect(tmp_path):
    folder = pictures(tmp_path / "hr", count=2)
    rows = list(evaluate_folder(find_images(folder), folder, 4, None))
    assert len(rows) == 2
    assert all(row["psnr_y"] == np.inf and row["ssim_rgb"] == pytest.approx(1) for row in rows)


def test_a_model_stands_beside_bicubic_and_bicubic_equals_itself(tmp_path):
    files = find_images(pictures(tmp_path / "hr", count=2))
    rows = list(evaluate_model(files, None, lambda lr: bicubic(lr, 4), "ours", 4, None))
    averages = means(rows)
    assert list(averages) == ["bicubic", "ours"]
    assert averages["ours"]["psnr_y"] == averages["bicubic"]["psnr_y"] > 20
    assert "seconds" in averages["ours"]
    assert table(averages).splitlines()[1].startswith("bicubic")


def test_a_missing_partner_is_named(tmp_path):
    hr, sr = pictures(tmp_path / "hr", count=2), pictures(tmp_path / "sr", count=1)
    with pytest.raises(EvaluationError, match="no picture named 1"):
        list(evaluate_folder(find_images(hr), sr, 4, None))


def test_an_lr_picture_of_another_size_is_named(tmp_path):
    hr, lr = pictures(tmp_path / "hr", count=1), pictures(tmp_path / "lr", count=1, side=24)
    with pytest.raises(EvaluationError, match="is not 4 times its LR picture"):
        list(evaluate_model(find_images(hr), lr, lambda x: x, "ours", 4, None))
