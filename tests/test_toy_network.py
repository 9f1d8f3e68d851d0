"""A new network is the places that CONTRIBUTING.md names and no other: in a copy of the sources a
toy network gets them, and then trains with DREAM and upscales.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from ldm_dream.data.images import read_image
from runs import pictures

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("ldm_dream", "kernels/dream_kernels", "tools")

CONFIG_CLASS = '''class ToyConfig(NetworkKnobs):
    """Two convolutions, for a test."""

    kind: Literal["toy"] = "toy"
    cond_factor: ClassVar[int] = 1
    image_size: ImageSize = 16
    in_channels: InChannels = 3
    out_channels: OutChannels = 3
    cond_channels: CondAfter = 3
    width: int = Field(default=8, ge=1, description="Channels between the convolutions.")


'''
NETWORK = '''"""A toy: a convolution, the timestep, a convolution."""

import torch
from torch import Tensor, nn

from ldm_dream.config.networks import ToyConfig
from ldm_dream.networks.base import Network
from ldm_dream.networks.layers import of_size, timestep_embedding


class ToyNet(Network):
    """Any size, without padding."""

    sees_noise_level = False
    multiple, align, cond_factor = 1, 1, 1
    repeated_blocks = (nn.Conv2d,)

    def __init__(self, cfg: ToyConfig):
        super().__init__()
        self.width = cfg.width
        self.first = nn.Conv2d(cfg.in_channels + cfg.cond_channels, cfg.width, 3, padding=1)
        self.last = nn.Conv2d(cfg.width, cfg.out_channels, 3, padding=1)

    def embed(self, t: Tensor) -> Tensor:
        return timestep_embedding(t, self.width)

    def prepare(self, cond: Tensor, size: tuple[int, int]) -> tuple[Tensor]:
        return (of_size(cond, size),)

    def forward(self, z_t: Tensor, emb: Tensor, cond: Tensor) -> Tensor:
        h = self.first(torch.cat([z_t, cond.to(z_t.dtype)], 1))
        return self.last((h + emb[:, :, None, None].to(h.dtype)).relu()).to(z_t.dtype)
'''
RUN = """description: A toy network, x4.
expected: not run
network: {kind: toy}
process: {kind: residual_shift, num_timesteps: 4}
condition: [z_lr]
loss: {strength: 1.0}
data: {train: [hr], val: [hr], patch: 32}
train: {steps: 2, batch_size: 2, precision: fp32, log_every: 1, val_images: 1, val_crop: 32}
"""


def test_a_new_network_is_the_places_that_contributing_names(tmp_path):
    for folder in COPIED:
        ignored = shutil.ignore_patterns("__pycache__", "weights")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    before = contents(tmp_path)

    configs, networks = "ldm_dream/config/networks.py", "ldm_dream/networks/__init__.py"
    insert(tmp_path / configs, before="NetworkConfig = Annotated[\n    ", text=CONFIG_CLASS)
    insert(tmp_path / configs, after="NetworkConfig = Annotated[\n    ", text="ToyConfig | ")
    insert(tmp_path / networks, after="from ldm_dream.networks import ", text="toy, ")
    insert(tmp_path / networks, after="type[Network]] = {", text='"toy": toy.ToyNet, ')
    (tmp_path / "ldm_dream/networks/toy.py").write_text(NETWORK)
    (tmp_path / "configs/toy").mkdir(parents=True)
    (tmp_path / "configs/toy/toy-4x.yaml").write_text(RUN)

    pictures(tmp_path / "hr", count=2)
    command(tmp_path, "tools/train.py", "configs/toy/toy-4x.yaml")
    log = (tmp_path / "runs/toy/toy-4x/metrics.jsonl").read_text()
    rows = [json.loads(row) for row in log.splitlines()]
    assert [row["step"] for row in rows if "loss/network" in row] == [1, 2]
    small = pictures(tmp_path / "small", count=1, side=12) / "0.png"
    model = "runs/toy/toy-4x/model"
    command(tmp_path, "tools/upscale.py", "-n", model, "-i", str(small), "-o", "large.png")
    assert read_image(tmp_path / "large.png").pixels.shape == (48, 48, 3)

    after = contents(tmp_path)
    assert {path for path in after if after[path] != before.get(path)} == {
        configs,
        networks,
        "ldm_dream/networks/toy.py",
    }


def contents(folder: Path) -> dict[str, bytes]:
    """Path -> bytes of every source of the copy."""
    files = (path for part in COPIED for path in (folder / part).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def insert(path: Path, text: str, before: str = "", after: str = "") -> None:
    """`text` before or after a place that the file has exactly once."""
    source, place = path.read_text(), before or after
    assert source.count(place) == 1, f"{path.name}: {place!r}"
    path.write_text(source.replace(place, text + place if before else place + text))


def command(folder: Path, *words: str) -> None:
    """A tool of the copy, run with the copy's own packages."""
    path = os.pathsep.join((str(folder), str(folder / "kernels")))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
