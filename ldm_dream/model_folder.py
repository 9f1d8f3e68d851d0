"""Model folders: what a user loads. Safetensors and YAML only, never a pickle.

`model.safetensors`, `config.yaml` (the resolved run), `README.md` (its card). A diffusion model's
folder names its autoencoder's folder in `config.yaml` (`autoencoder.pretrained`), or holds the
weights itself as `autoencoder.safetensors`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldm_dream.config.files import dump_config
from ldm_dream.config.model import AutoencoderConfig, PixelConfig
from ldm_dream.config.run import DiffusionRun, Run
from ldm_dream.hub import repo_id_of
from ldm_dream.model_config import ModelError, find_model, read_run, resolve_autoencoder
from ldm_dream.networks import build_network
from ldm_dream.networks.autoencoders import build_autoencoder
from ldm_dream.networks.base import Autoencoder, Network
from ldm_dream.process import Process, build_process


class LoadedModel(NamedTuple):
    """A diffusion model ready to sample: modules in eval mode with EMA weights, float32, on the
    CPU.
    """

    run: DiffusionRun
    network: Network
    autoencoder: Autoencoder
    process: Process
    folder: Path | None = None


# ------------------------------------------------------------------------------------ model folders


def save_model(
    folder: Path,
    run: Run,
    state: dict[str, Tensor],
    card: str,
    autoencoder: dict[str, Tensor] | None = None,
) -> None:
    """Write a model folder as a whole; an older one of that name is replaced only when the new one
    is complete.
    """
    with whole_folder(folder) as draft:
        save_file(packed(state), draft / "model.safetensors")
        if autoencoder is not None:
            save_file(packed(autoencoder), draft / "autoencoder.safetensors")
        (draft / "config.yaml").write_text(dump_config(run), encoding="utf-8")
        (draft / "README.md").write_text(card, encoding="utf-8")


def load_model(name_or_dir: str | Path) -> LoadedModel:
    """What `find_model` takes -> LoadedModel. Raises ModelError, HubError."""
    folder = find_model(name_or_dir)
    run = read_run(folder)
    if not isinstance(run, DiffusionRun):
        raise ModelError(
            f"{folder}: this is an autoencoder, not a super-resolution model; name a folder with task: diffusion."
        )
    # who made a model of the hub does not choose among the folders of who loads it
    is_local = repo_id_of(str(name_or_dir)) is None
    autoencoder = load_autoencoder(run.autoencoder, folder, is_local)
    with torch.device("meta"):  # first weights would be made for nothing
        network = build_network(run.network)
    load_weights(network, folder / "model.safetensors")
    return LoadedModel(run, network.eval(), autoencoder, build_process(run.process), folder)


def load_autoencoder(
    cfg: AutoencoderConfig, folder: Path | None = None, is_local: bool = True
) -> Autoencoder:
    """Frozen autoencoder of a run: from `folder/autoencoder.safetensors` if there, else from
    `cfg.pretrained`, which is no folder of the user where the config is not `is_local`.
    """
    own = folder / "autoencoder.safetensors" if folder else None
    if isinstance(cfg, PixelConfig):
        return build_autoencoder(cfg).requires_grad_(False).eval()
    if own is None or not own.is_file():
        if not cfg.pretrained:
            raise ModelError(
                "autoencoder.pretrained is not set: name a bundled autoencoder, the folder of one, or hf:owner/name."
            )
        own = find_model(cfg.pretrained, is_local) / "model.safetensors"
        cfg = resolve_autoencoder(cfg, is_local)
    with torch.device("meta"):
        autoencoder = build_autoencoder(cfg)
    load_weights(autoencoder, own)
    return autoencoder.requires_grad_(False).eval()


def load_weights(module: nn.Module, path: Path) -> None:
    """Strict: what is missing, extra, of another shape or kind, or not finite raises ModelError."""
    state = read_tensors(path)
    own = module.state_dict()
    wrong = [k for k in own if k not in state or not _fits(state[k], own[k])] + [
        k for k in state if k not in own
    ]
    if wrong:
        raise ModelError(
            f"{path}: {len(wrong)} weights do not fit config.yaml beside it, the first is {wrong[0]!r}."
        )
    if broken := [k for k, value in state.items() if not value.isfinite().all()]:
        raise ModelError(
            f"{path}: {len(broken)} weights hold NaN or infinity, the first is {broken[0]!r}; take another copy."
        )
    # copies: a file's tensors lie unaligned in memory, where sums round otherwise
    state = {key: value.to(own[key].dtype, copy=True) for key, value in state.items()}
    module.load_state_dict(state, assign=any(x.is_meta for x in own.values()))


def _fits(value: Tensor, own: Tensor) -> bool:
    return value.shape == own.shape and value.is_floating_point() == own.is_floating_point()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file; missing or cut short raises ModelError."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file; the model folder is incomplete, copy it again.")
    try:
        return load_file(path)
    # KeyError: a dtype that this torch has not
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ModelError(f"{path}: cut short or damaged ({error}); copy it again.") from None


# ------------------------------------------------------------------------------------------ writing


class whole_folder:  # noqa: N801
    """Context: a draft folder beside the target; synced and put in the target's place on success,
    removed on failure.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")

    def __enter__(self) -> Path:
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self.draft, ignore_errors=True)
            self.draft.mkdir()
        except OSError as error:
            raise ModelError(
                f"{self.folder}: cannot be written ({error.strerror}); nothing was changed."
            ) from None
        return self.draft

    def __exit__(self, kind, error, trace) -> None:
        if error is not None:
            shutil.rmtree(self.draft, ignore_errors=True)
            if isinstance(error, (OSError, SafetensorError)):
                raise ModelError(
                    f"{self.folder}: could not be written ({error}); the earlier ones are untouched."
                ) from error
            return
        for path in (*self.draft.iterdir(), self.draft):
            _sync(path)
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.draft.rename(self.folder)
        _sync(self.folder.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def packed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in state.items()}
