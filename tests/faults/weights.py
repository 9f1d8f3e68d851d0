"""Damaged and hostile files of weights, none of which may run anything. Their ends:

- refused: a UserError whose text is one printable sentence.
- accepted: loads with its true values.
- unchecked: loads with other finite values, where nothing in the file could tell: a .safetensors
  without SHA256SUMS beside it and a .pth of torch's old format have no checksum, and a file that was
  written whole with other tensors is another file. Never a .pth that is an archive, and never a
  model folder with its SHA256SUMS.

A mutant is a model folder (safetensors and config) with or without SHA256SUMS, a published
.safetensors, or a .pth in one of torch's two formats, whose bytes, header, archive or pickle was
changed.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from faults.configs import MOST_WORDS, damaged
from faults.runner import Tally, run_all
from ldm_dream.config.networks import SR3Config
from ldm_dream.config.process import DDPMConfig
from ldm_dream.config.run import DiffusionRun
from ldm_dream.errors import UserError, shown
from ldm_dream.interchange.systems import SR3
from ldm_dream.model_folder import load_model, save_model
from ldm_dream.networks import build_network
from published_systems import load_published

CONFIG = SR3Config(
    image_size=16, model_channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=4
)
RUN = DiffusionRun(
    network=CONFIG, process=DDPMConfig(), prediction="eps", condition=("z_lr",), scale=2
)
Change = Callable[[Path, random.Random, Path], None]
CODE = ("os.system", "builtins.eval", "subprocess.Popen", "torch.load", "shutil.rmtree")


def run(n: int, seed: int) -> Tally:
    """`n` mutants from `seed`."""
    with tempfile.TemporaryDirectory() as folder:
        write_originals(Path(folder))
        return run_all(lambda number: check(Path(folder), seed, number), n)


def write_originals(folder: Path) -> None:
    for name in ("model", "bare"):
        save_model(folder / name, RUN, truth(), "a card")
    (folder / "bare/SHA256SUMS").unlink()  # which finds every change of a byte
    published = {SR3.published(key): value for key, value in truth().items()}
    save_file(published, folder / "x.safetensors")
    torch.save(published, folder / "x.pth")
    torch.save(
        {"params": published, "epoch": 3}, folder / "old.pth", _use_new_zipfile_serialization=False
    )


@cache
def truth() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build_network(CONFIG).state_dict()


def check(originals: Path, seed: int, number: int) -> str:
    """Verdict on one mutant."""
    rng = random.Random(f"{seed} {number}")
    folder = originals / f"mutant-{os.getpid()}"
    folder.mkdir()
    trap = folder / "trap"
    try:
        if rng.random() < 0.4:
            kind = rng.choice(("model", "bare"))
            shutil.copytree(originals / kind, folder / kind)
            name = rng.choice(("model.safetensors", "model.safetensors", "config.yaml"))
            change(folder / kind / name, rng, trap)
            is_guarded = kind == "model" or name == "config.yaml"
            return judge(lambda: load_model(folder / kind).network.state_dict(), trap, is_guarded)
        path = folder / rng.choice(("x.safetensors", "x.pth", "x.pth", "old.pth"))
        shutil.copyfile(originals / path.name, path)
        is_guarded = change(path, rng, trap) is not repickle and path.name == "x.pth"
        return judge(lambda: load_published(path)[1], trap, is_guarded)
    except Exception as error:
        raise RuntimeError(f"seed {seed}, number {number}") from error
    finally:
        shutil.rmtree(folder)


def judge(load: Callable[[], dict[str, torch.Tensor]], trap: Path, is_guarded: bool) -> str:
    """Loads. Raises AssertionError for a sentence that is none, for weights that are no numbers, for
    other weights where `is_guarded` (they have a checksum), and where something was run.
    """
    try:
        state = load()
    except UserError as error:
        words = " ".join(str(error).split())
        assert shown(words).isprintable(), f"no line that can be printed: {error!r}"
        assert len(words) < 2 * MOST_WORDS and words[-1] in ".?)", f"no sentence: {words}"
        return "refused"
    finally:
        assert not trap.exists(), "code was run"
    assert all(value.isfinite().all() for value in state.values())
    assert state.keys() == truth().keys(), "other names"
    others = [key for key, value in state.items() if not torch.equal(value.float(), truth()[key])]
    assert not (others and is_guarded), f"other values: {others}"
    return "unchecked" if others else "accepted"


# ------------------------------------------------------------------------------------------ mutants


def change(path: Path, rng: random.Random, trap: Path) -> Change:
    """One kind of fault for this kind of file; gives which."""
    kinds = {
        ".yaml": (config,),
        ".safetensors": (header, header, header, damage, values),
        ".pth": (damage, hostile, archive, repickle, values)
        if path.name == "x.pth"
        else (damage, hostile),
    }[path.suffix]
    kind = rng.choice(kinds)
    kind(path, rng, trap)
    return kind


def config(path: Path, rng: random.Random, trap: Path) -> None:
    path.write_bytes(damaged(path.read_bytes(), rng))


def damage(path: Path, rng: random.Random, trap: Path) -> None:
    """Bytes changed, lost or doubled, mostly near the ends, where headers and pickles are."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 8)):
        near = rng.choice((100, 4000, len(data)))
        at = rng.randrange(min(near, len(data)) or 1)
        at = len(data) - 1 - at if rng.random() < 0.4 else at
        if rng.random() < 0.7 and data:
            data[at % len(data)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif rng.random() < 0.5:
            del data[at : at + rng.randint(1, 2000)]
        else:
            data[at:at] = data[at : at + rng.randint(1, 64)]
    path.write_bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.2 else data)


def values(path: Path, rng: random.Random, trap: Path) -> None:
    """NaN, infinity or huge values in the raw bytes of the tensors."""
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data) // 4, len(data) * 3 // 4) // 4 * 4
    bad = rng.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f"))
    data[at : at + 40] = bad * 10
    path.write_bytes(data)


def header(path: Path, rng: random.Random, trap: Path) -> None:
    """A header of safetensors that lies."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    table, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    names = [name for name in table if name != "__metadata__"]
    one, other = rng.choice(names), rng.choice(names)
    kind = rng.randrange(9)
    if kind == 0:
        table[one]["data_offsets"] = table[other]["data_offsets"]
    elif kind == 1:
        table[one]["shape"] = rng.choice(([], [0], [-1], [2**62, 4], [1] * 100, [1.5], "x", None))
    elif kind == 2:
        table[one]["dtype"] = rng.choice(("F64", "I32", "F16", "U8", "F8_E4M3", "C64", "X", "", 3))
    elif kind == 3:
        start, end = table[one]["data_offsets"]
        table[one]["data_offsets"] = rng.choice(
            ([end, start], [start, end + 4], [0, 2**63], [start - 4, end], [start], [-4, end], None)
        )
    elif kind == 4:
        table["\x1b[31m" * rng.randint(1, 300)] = table.pop(one)
    elif kind == 5:
        del table[one]
    elif kind == 6:
        table[one]["shape"] = table[other]["shape"]
    elif kind == 7:
        body += bytes(rng.choice((1, 4, 1000)))
    text = json.dumps(table).encode()
    length = len(text) if kind != 8 else rng.choice((0, 1, 2**31, 2**63, 2**64 - 1, size + 9))
    path.write_bytes(length.to_bytes(8, "little") + text + body)


class Bomb:
    """A pickle that calls a function when it is read."""

    def __init__(self, trap: Path):
        self.trap = trap

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trap}",)


def hostile(path: Path, rng: random.Random, trap: Path) -> None:
    """Code in a pickle of any protocol, alone or beside a state dict, or another function's name."""
    state = torch.load(path, weights_only=True)
    held = rng.choice((Bomb(trap), [Bomb(trap)], {"state_dict": {"x": Bomb(trap)}, "epoch": 1}))
    data = pickle.dumps(held, protocol=rng.randint(0, 5))
    if rng.random() < 0.3:
        module, name = rng.choice(CODE).rsplit(".", 1)
        data = f"c{module}\n{name}\n(S'touch {trap}'\ntR.".encode()
    if rng.random() < 0.5:
        path.write_bytes(data)
    else:
        torch.save(
            {**state, "hook": Bomb(trap)}, path, _use_new_zipfile_serialization=rng.random() < 0.5
        )


def archive(path: Path, rng: random.Random, trap: Path) -> None:
    """A zip archive that grows, lacks entries, has them twice, or holds something else."""
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    kind, written = rng.randrange(5), io.BytesIO()
    packing = zipfile.ZIP_DEFLATED if kind == 0 else zipfile.ZIP_STORED
    with zipfile.ZipFile(written, "w", packing) as new:
        for name, data in entries.items():
            if kind == 1 and rng.random() < 0.1:
                continue
            if kind == 2 and rng.random() < 0.1:
                data = data[: rng.randrange(len(data) + 1)]
            if kind == 0 and rng.random() < 0.05:
                data = bytes(2**22)
            new.writestr(name.replace("data.pkl", "code/x.py") if kind == 3 else name, data)
        if kind == 4:
            new.writestr("x/constants.pkl", b"\x80\x02}.")
    path.write_bytes(written.getvalue())


def repickle(path: Path, rng: random.Random, trap: Path) -> None:
    """Tensors of other kinds, shapes and sizes under the published names."""
    state = torch.load(path, weights_only=True)
    name = rng.choice(list(state))
    state[name] = rng.choice(
        (
            torch.zeros(1).expand(2**20, 2**12),
            torch.empty(2**30, device="meta"),
            torch.eye(3).to_sparse(),
            torch.zeros(3, dtype=torch.complex64),
            state[name].to(torch.int64),
            state[name].half() * torch.inf,
            state[name].double(),
            torch.zeros(0),
            torch.zeros(()),
            "x",
            None,
        )
    )
    if rng.random() < 0.3:
        state = rng.choice(({}, [], {"model": state}, {1: state}, state[name], {"ema": {}}, 3))
    torch.save(state, path)
