"""Golden runner of MATLAB-style bicubic: `<input>.x<scale>[.antialiasing_False]` for every stored
input.
"""

from __future__ import annotations

from torch import Tensor

from golden.reading import Case
from ldm_dream.data.resize import imresize


def run(case: Case, io: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor | float]:
    """-> images [3, h, w]. Tables of weights and indices are the official code's internals and are
    not produced.
    """
    outputs = {}
    for key, image in io.items():
        if not key.startswith("in."):
            continue
        name = key.removeprefix("in.")
        for scale, numerator, denominator in case["construct"]["scales"]:
            outputs[f"{name}.x{scale}"] = imresize(image, numerator / denominator)
        for scale, numerator, denominator in case["construct"]["antialiasing_False"]:
            outputs[f"{name}.x{scale}.antialiasing_False"] = imresize(
                image, numerator / denominator, antialias=False
            )
    return outputs
