"""Type checkers know what the Python face takes and gives (py.typed)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

RIGHT = """
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from typing_extensions import assert_type

import ldm_dream
from ldm_dream import Image, Stopped, Upscaler, UserError, list_models, read_image, write_image


def told(done: int, total: int, preview) -> bool | None:
    return done < total


model = Upscaler.from_pretrained("hf:me/model", torch.device("mps"), torch.float16, revision="v1")
assert_type(model.to("cuda", torch.bfloat16).to(torch.float16).to(device="cpu"), Upscaler)
assert_type(model("a.png"), Image)
assert_type(model(Path("a.png"), scale=2, steps=1, callback=told), Image)
assert_type(model([Path("a.png"), "b.png"]), list[Image])
assert_type(model(PIL.Image.open("a.png")), PIL.Image.Image)
assert_type(model([PIL.Image.new("RGB", (2, 2))]), list[PIL.Image.Image])
assert_type(model([torch.zeros(3, 2, 2)], seed=1), list[torch.Tensor])
assert_type(model(read_image("a.png")), Image)
write_image(Path("b.png"), model("a.png"))
assert_type([known.name for known in list_models()], list[str])
assert issubclass(Stopped, UserError) and ldm_dream.Upscaler is Upscaler
"""
WRONG = ['model("a.png", step=4)', "model(7)", 'model("a.png", steps="4")', 'model.to(cuda="0")']


def test_a_type_checker_knows_the_python_face(tmp_path):
    pytest.importorskip("basedpyright")
    lines = RIGHT + "\n".join(WRONG) + "\n"
    (tmp_path / "snippet.py").write_text(lines)
    settings = {"typeCheckingMode": "basic", "pythonVersion": "3.10", "extraPaths": [str(ROOT)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run([*command, "-p", tmp_path], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)["generalDiagnostics"]
    wrong = {one["range"]["start"]["line"] for one in found if one["severity"] == "error"}
    first = RIGHT.count("\n")
    assert wrong == set(range(first, first + len(WRONG))), done.stdout
