"""Golden runners: `run(case, io, weights) -> {name: computed output}`, one module a kind of case;
../test_golden.py compares. `case` (reading.py) tells which of its keys a runner never read: the case
then fails.

A case folder may be renamed and configured differently, so a runner reads everything from case.json
and from the inputs. New kinds: write tests/golden/<module>.py and give it a row here.
"""

from __future__ import annotations

import json
from typing import NamedTuple


class Kind(NamedTuple):
    # text of `construct` or of a tensor's name that only this kind has: knows the case whatever it
    # is called
    mark: str
    module: str  # tests/golden/<module>.py
    # outputs (a regular expression) that a runner need not produce, from the case's must_match
    optional: str = r"hook\..*"


KINDS = {
    "resshift_diffusion": Kind('"min_noise_level"', "resshift_diffusion"),
    "ddpm_respaced": Kind(".guided.timestep_map", "ddpm_respaced"),
    "diffusers_dream": Kind('"dream_detail_preservation"', "diffusers_dream"),
    "diffusers_samplers": Kind(".latents", "diffusers_samplers"),
    "imresize": Kind(
        '"antialiasing_False"',
        "imresize",
        optional=r"(weights|indices0based_in_padded|pad_start_end)\..*",
    ),
    "metrics": Kind("gaussian_window_1d", "metrics"),
    "resshift_unet": Kind('"UNetModelSwin"', "resshift_unet"),
    "vqgan_f4": Kind('"VQModelTorch"', "vqgan"),
    "vqgan_taming": Kind('"VQModel"', "vqgan"),
    "sr3_dream_loss": Kind("rectified_noisy", "sr3"),
    "sr3_sampling": Kind("x0_pred", "sr3"),
    "idm_unet": Kind(
        '"encoder_EDSR_kwargs"', "idm_unet", optional=r"(conv_body_first|idm\d+_(style|tokens))_\d+"
    ),
    "sr3_unet": Kind("noise_embedding_0", "sr3"),
}


def kind_of(case: dict) -> str:
    """By the longest kind that the case's name starts with, else by its content. Raises ValueError
    with the name.
    """
    name = case.get("case", "")
    named = [kind for kind in KINDS if name.startswith(kind)]
    if named:
        return max(named, key=len)
    content = json.dumps([case.get("construct"), list(case.get("tensors", ()))])
    marked = [kind for kind, row in KINDS.items() if row.mark in content]
    if len(marked) == 1:
        return marked[0]
    raise ValueError(
        f"case {name!r} is of no known kind; known: {', '.join(KINDS)}. Add a runner to tests/golden."
    )
