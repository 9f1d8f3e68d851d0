"""The cases of docs/conformance: they are what the command writes, ours computes them, and what
diffusers' function does with them.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_dream_and_update_latents
from safetensors.torch import load_file

from benchmarks import conformance
from benchmarks.__main__ import build_parser
from ldm_dream import loss
from ldm_dream.config.process import DDPMConfig, Dream
from ldm_dream.denoiser import Inputs
from ldm_dream.process import build_process
from runs import PlainDenoiser

FOLDER = Path(__file__).resolve().parents[1] / "docs/conformance"
CASES = load_file(FOLDER / "dream.safetensors")
POWERS = pytest.mark.parametrize("p", conformance.POWERS)


def network(z, t):
    out = torch.einsum("ij,bjhw->bihw", CASES["weight"], z.double())
    return out + CASES["bias"][t][:, :, None, None]


def test_the_files_are_what_the_command_writes(tmp_path):
    conformance.main(build_parser().parse_args(["conformance", "-o", str(tmp_path)]))
    again = load_file(tmp_path / "dream.safetensors")
    assert again.keys() == CASES.keys()
    for name, value in CASES.items():
        torch.testing.assert_close(again[name], value, rtol=1e-12, atol=1e-12, msg=name)
    texts = [(folder / "dream.json").read_text() for folder in (FOLDER, tmp_path)]
    assert texts[0] == texts[1]
    assert json.loads(texts[0])["tensors"]["z0"] == [3, 2, 4, 4]


@POWERS
@pytest.mark.parametrize("kind", ["l1", "l2"])
@pytest.mark.parametrize("prediction", conformance.PREDICTIONS)
def test_ours_computes_them(prediction, kind, p, monkeypatch):
    betas = CASES["betas"]
    ends = {"beta_start": float(betas[0]), "beta_end": float(betas[-1])}
    process = build_process(DDPMConfig(num_timesteps=len(betas), **ends))
    seen = []
    denoiser = PlainDenoiser(lambda z, t: (seen.append(z), network(z, t))[1], process, prediction)
    inputs = Inputs(torch.zeros_like(CASES["z0"]), ())
    found = loss.diffusion_loss(
        denoiser, CASES["z0"], inputs, CASES["t"], CASES["eps"], Dream(strength=1.0, p=p, kind=kind)
    )
    wanted = {name: CASES[f"{prediction}/p{p}/{name}"] for name in ("z_t_rectified", kind)}
    torch.testing.assert_close(seen[-1].double(), wanted["z_t_rectified"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.loss.double(), wanted[kind], rtol=1e-5, atol=1e-5)


def of_diffusers(prediction, p):
    scheduler = DDPMScheduler(trained_betas=CASES["betas"].numpy(), prediction_type=prediction)
    unet = lambda z, t, text: SimpleNamespace(sample=network(z, t))  # noqa: E731
    return compute_dream_and_update_latents(
        unet, scheduler, CASES["t"], CASES["eps"], CASES["z_t"], CASES["eps"], None, p
    )


@POWERS
def test_diffusers_computes_those_of_eps(p):
    rectified, target = of_diffusers("epsilon", p)
    for found, name in ((rectified, "z_t_rectified"), (target, "target")):
        torch.testing.assert_close(found.double(), CASES[f"eps/p{p}/{name}"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("prediction", "error", "says"),
    [
        ("v_prediction", NotImplementedError, "not been implemented for v-prediction"),
        ("sample", ValueError, "Unknown prediction type sample"),
    ],
)
def test_diffusers_has_no_others(prediction, error, says):
    with pytest.raises(error, match=says):
        of_diffusers(prediction, 1)
