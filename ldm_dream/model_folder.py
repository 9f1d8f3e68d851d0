"""Model folders: what a user loads. Safetensors and YAML only, never a pickle.

`model.safetensors`, `config.yaml` (the resolved run), `README.md` (its card), `SHA256SUMS`. A latent
model knows its autoencoder by content: `autoencoder.sha256` in `config.yaml`. The weights lie in the
folder as `autoencoder.safetensors`, unless they are those of a bundled autoencoder
(`autoencoder.pretrained`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldm_dream.config.autoencoder import AutoencoderConfig, PixelConfig
from ldm_dream.config.files import dump_config
from ldm_dream.config.run import DiffusionRun, Run
from ldm_dream.digests import damaged
from ldm_dream.hub import ANYWHERE, Search, repo_id_of
from ldm_dream.model_config import (
    AUTOENCODER,
    BUNDLED,
    WEIGHTS,
    ModelError,
    find_model,
    is_bundled,
    read_run,
    resolve_autoencoder,
    upscaler_names,
)
from ldm_dream.networks import build_network
from ldm_dream.networks.autoencoders import build_autoencoder
from ldm_dream.networks.base import Autoencoder, Network
from ldm_dream.process import Process, build_process
from ldm_dream.writing import check_folder, whole_folder


class LoadedModel(NamedTuple):
    """A diffusion model ready to sample: modules in eval mode with EMA weights, float32, on the
    CPU. name: by which it was asked for.
    """

    run: DiffusionRun
    network: Network
    autoencoder: Autoencoder
    process: Process
    folder: Path | None = None
    name: str = "unnamed"

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return self.network, self.autoencoder


# ------------------------------------------------------------------------------------ model folders


def save_model(
    folder: Path,
    run: Run,
    state: dict[str, Tensor],
    card: str,
    autoencoder: dict[str, Tensor] | None = None,
) -> None:
    """Write a model folder as a whole. autoencoder: its weights, where the folder is to hold them."""
    if autoencoder is not None and isinstance(run, DiffusionRun):
        own = {"pretrained": None, "sha256": weights_digest(autoencoder)}
        kept = run.autoencoder.model_copy(update=own)
        run = run.model_copy(update={"autoencoder": kept})
    with whole_folder(folder) as draft:
        write_tensors(draft / WEIGHTS, state)
        if autoencoder is not None:
            write_tensors(draft / AUTOENCODER, autoencoder)
        (draft / "config.yaml").write_text(dump_config(run), encoding="utf-8")
        (draft / "README.md").write_text(card, encoding="utf-8")


def save_loaded(model: LoadedModel, folder: Path) -> None:
    """Write a loaded model as a folder of its own: with its card, and with its autoencoder unless
    that is bundled. Raises WriteError, also for a folder that holds something else.
    """
    check_folder(folder, holds=WEIGHTS)
    card = model.folder / "README.md" if model.folder else None
    text = card.read_text(encoding="utf-8") if card and card.is_file() else f"# {model.name}\n"
    cfg = model.run.autoencoder
    elsewhere = isinstance(cfg, PixelConfig) or is_bundled(cfg.pretrained)
    autoencoder = None if elsewhere else model.autoencoder.state_dict()
    save_model(folder, model.run, model.network.state_dict(), text, autoencoder)


def load_model(name_or_dir: str | Path, search: Search = ANYWHERE) -> LoadedModel:
    """What `find_model` takes -> LoadedModel. Raises ModelError, HubError."""
    name = str(name_or_dir)
    folder = find_model(name, search, upscaler_names)
    run = read_run(folder)
    if not isinstance(run, DiffusionRun):
        raise ModelError(
            f"{folder}: this is an autoencoder, not a super-resolution model; name a folder with task: diffusion."
        )
    # who made a model of the hub does not choose among the folders of who loads it
    of_parts = search._replace(folders=repo_id_of(name) is None, revision=None)
    autoencoder = load_autoencoder(run.autoencoder, folder, of_parts)
    with torch.device("meta"):  # first weights would be made for nothing
        network = build_network(run.network)
    load_weights(network, folder / WEIGHTS)
    return LoadedModel(run, network.eval(), autoencoder, build_process(run.process), folder, name)


def load_autoencoder(
    cfg: AutoencoderConfig, folder: Path | None = None, search: Search = ANYWHERE
) -> Autoencoder:
    """Frozen autoencoder of a run: from `folder/autoencoder.safetensors` if there, else from
    `cfg.pretrained`. search: for that. Raises ModelError where the weights are not those of
    `cfg.sha256`.
    """
    own = folder / AUTOENCODER if folder else None
    if isinstance(cfg, PixelConfig):
        return build_autoencoder(cfg).requires_grad_(False).eval()
    wanted = cfg.sha256
    if own is None or not own.is_file():
        if not cfg.pretrained:
            raise ModelError(
                "autoencoder.pretrained is not set: name a bundled autoencoder, the folder of one, or hf:owner/name."
            )
        own = find_model(cfg.pretrained, search) / WEIGHTS
        cfg = resolve_autoencoder(cfg, search)
    tensors = read_tensors(own)
    if wanted and wanted != weights_digest(tensors):
        raise ModelError(
            f"{own}: is not the autoencoder that this model was trained with (autoencoder.sha256); "
            "put that one back, or train on the new one."
        )
    with torch.device("meta"):
        autoencoder = build_autoencoder(cfg)
    _put(tensors, autoencoder, own)
    return autoencoder.requires_grad_(False).eval()


def own_autoencoder(cfg: AutoencoderConfig) -> tuple[AutoencoderConfig, dict[str, Tensor] | None]:
    """A config that names a pretrained autoencoder -> the config with its architecture and digest,
    and the weights that whoever stands on it must keep: None of a bundled one, and of pixels.
    """
    if isinstance(cfg, PixelConfig) or not cfg.pretrained:
        return cfg, None
    folder = find_model(cfg.pretrained)
    tensors = read_tensors(folder / WEIGHTS)
    known = resolve_autoencoder(cfg).model_copy(update={"sha256": weights_digest(tensors)})
    return known, None if folder.parent == BUNDLED else tensors


def weights_digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, whatever file they come from."""
    found = hashlib.sha256()
    for name, value in sorted(packed(tensors).items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def load_weights(module: nn.Module, path: Path) -> None:
    """Strict: what is missing, extra, of another shape or kind, or not finite raises ModelError."""
    _put(read_tensors(path), module, path)


def _put(state: dict[str, Tensor], module: nn.Module, path: Path) -> None:
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
    """A safetensors file; missing, cut short or changed since it was written raises ModelError."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file; the model folder is incomplete, copy it again.")
    try:
        wrong = damaged(path)
        if not wrong:
            return load_file(path)
    # KeyError: a dtype that this torch has not
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        wrong = str(error)
    raise ModelError(f"{path}: cut short or damaged ({wrong}); copy it again.")


def write_tensors(path: Path, state: dict[str, Tensor]) -> None:
    """A safetensors file. Raises OSError, as every other file does."""
    try:
        save_file(packed(state), path)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def packed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in state.items()}
