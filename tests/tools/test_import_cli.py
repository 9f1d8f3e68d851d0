"""Laws of tools/import_checkpoint.py: a published file in, a model folder out, or one sentence."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ldm_dream.config.files import load_config
from ldm_dream.model_folder import load_model
from published_systems import (
    DIFFUSION,
    LDM_PROCESS,
    SR3_PROCESS,
    SYSTEMS,
    ldm_checkpoint,
    load_published,
    published,
    save_halves,
)

TOOL = Path(__file__).resolve().parents[2] / "tools/import_checkpoint.py"


@pytest.fixture
def ldm() -> dict[str, Tensor]:
    return ldm_checkpoint()


@pytest.fixture
def tool(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """The tool with these words -> exit status, stdout, stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, words)])
        status = 0
        try:
            runpy.run_path(str(TOOL), run_name="__main__")
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


def save_as_published(name: str, folder: Path, ldm: dict[str, Tensor]) -> Path:
    state = ldm if name == "ldm" else published(SYSTEMS[name])
    if name == "taesd":
        return save_halves(state, folder)
    filename = {"resshift": "resshift_realsrx4_s4_v3.pth", "ldm": "model.ckpt"}
    path = folder / filename.get(name, "I10_E1_gen.pth")
    torch.save({"epoch": 1, "state_dict": state} if name == "ldm" else state, path)
    return path


WRITTEN = {  # beyond the config of the network
    "resshift": {"process.num_timesteps": 4, "scale": 2},
    "sr3": {"process": SR3_PROCESS.model_copy(update={"continuous": True})},
    "idm": {"process": SR3_PROCESS},
    "ldm": {"process": LDM_PROCESS, "prediction": "eps", "condition": ("lr",)}
    | {"scale": SYSTEMS["vqgan"].config.factor, "sampler.kind": "ddim"}
    | {"sampler.steps": 100, "sampler.eta": 1.0},
    "vqgan": {},
    "taesd": {},
}


TOLD = {  # what nothing in a file of a small network tells
    "sr3": ("network.norm_groups=32", "scale=8"),
    "idm": ("network.norm_groups=32", "network.max_scale=8", "scale=8"),
    "ldm": ("network.num_head_channels=32",),
}


def tell(name: str) -> tuple[str, ...]:
    return ("--set", *TOLD[name]) if name in TOLD else ()


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_tool_writes_a_model_folder(name, tmp_path, ldm, tool):
    path, folder = save_as_published(name, tmp_path, ldm), tmp_path / "model"
    config, state = load_published(path)
    status, said, errors = tool(path, "-o", folder, *tell(name))
    assert (status, errors) == (0, "")
    assert ("next: import its autoencoder" in said) == (name == "resshift")
    got = load_file(folder / "model.safetensors")
    assert got.keys() == state.keys() and all(torch.equal(got[k], v) for k, v in state.items())
    assert f"As published: {SYSTEMS[name].terms}." in (folder / "README.md").read_text()
    run = load_config(folder / "config.yaml")
    assert config == SYSTEMS[name].config == (run.network if name in DIFFUSION else run.autoencoder)
    assert {field: attrgetter(field)(run) for field in WRITTEN[name]} == WRITTEN[name]


@pytest.mark.parametrize("name", ["sr3", "ldm"])
def test_the_model_that_the_tool_wrote_loads(name, tmp_path, ldm, tool):
    """With the first stage of the file, where it has one."""
    path = save_as_published(name, tmp_path, ldm)
    tool(path, "-o", tmp_path / "model", *tell(name))
    model = load_model(tmp_path / "model")
    state = model.network.state_dict()
    assert all(torch.equal(state[key], value) for key, value in load_published(path)[1].items())
    if name == "ldm":
        first_stage, prefix = model.autoencoder.state_dict(), "first_stage_model."
        want = {k.removeprefix(prefix): v for k, v in ldm.items() if k.startswith(prefix)}
        assert all(torch.equal(first_stage[key], value) for key, value in want.items())


def test_the_tool_says_a_mistake_in_one_sentence(tmp_path, tool):
    broken, strange = tmp_path / "x.pth", tmp_path / "I10_E1_gen.pth"
    broken.write_bytes(b"hello")
    torch.save(published(SYSTEMS["sr3"]) | {"betas": torch.linspace(0.1, 0.7, 2000) ** 4}, strange)
    for path, text in ((broken, "no file of weights"), (strange, "is none of linear")):
        status, said, errors = tool(path, "-o", tmp_path / "model")
        assert (status, said, errors.count("\n")) == (2, "", 1) and text in errors
        assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "told, status, says",
    [
        ((), 2, "nothing in it tells network.norm_groups, scale"),
        (("scale=4",), 2, "nothing in it tells network.norm_groups,"),
        (("scale=4", "network.norm_groups=16"), 0, ""),
        (("scale=4", "network.norm_groups=7"), 2, "norm_groups=7 does not divide"),
        (("scale=4", "network.norm_groups=16", "network.model_channels=64"), 2, "of another shape"),
        (("scale=4", "network.norm_group=16"), 2, "nothing in it tells network.norm_groups,"),
    ],
)
def test_what_no_shape_tells_is_told_or_asked_for(told, status, says, tmp_path, ldm, tool):
    """A network with 16 groups that is read as one with 32 is off by half."""
    path = save_as_published("sr3", tmp_path, ldm)
    got, _, errors = tool(path, "-o", tmp_path / "model", *(("--set", *told) if told else ()))
    assert got == status and says in errors and (tmp_path / "model").exists() == (not status)
    if not status:
        run = load_config(tmp_path / "model/config.yaml")
        assert (run.scale, run.network.norm_groups) == (4, 16)


def test_what_a_published_name_tells_is_printed_as_assumed(tmp_path, ldm, tool):
    path = save_as_published("resshift", tmp_path, ldm)
    _, said, _ = tool(path, "-o", tmp_path / "model")
    words = "process.num_timesteps=4, process.min_noise_level=0.2, process.kappa=2.0"
    assert f"assumed, as of the published model (change it by --set): {words}" in said
    assert f"nothing in the file tells: {words}." in (tmp_path / "model/README.md").read_text()
    unnamed = path.rename(tmp_path / "mine.pth")
    _, _, errors = tool(unnamed, "-o", tmp_path / "other")
    assert "--set process.num_timesteps=... process.min_noise_level=... process.kappa=..." in errors


def test_the_tool_helps_without_torch():
    code = "import sys, runpy; sys.argv = ['x', '--help']\n"
    code += f"try: runpy.run_path({str(TOOL)!r}, run_name='__main__')\n"
    code += "except SystemExit: assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0 and "MODEL_DIR" in result.stdout, result.stderr
