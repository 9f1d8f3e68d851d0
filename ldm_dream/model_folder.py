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
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldm_dream.config.files import dump_config, validate
from ldm_dream.config.model import AutoencoderConfig, PixelConfig, VQGANConfig
from ldm_dream.config.run import DiffusionRun, Run
from ldm_dream.errors import UserError
from ldm_dream.hub import PREFIX, download, is_repo_id, repo_id_of
from ldm_dream.networks import build_network
from ldm_dream.networks.autoencoders import build_autoencoder
from ldm_dream.networks.base import Autoencoder, Network
from ldm_dream.process import Process, build_process

BUNDLED = Path(__file__).parent / "weights"


class ModelError(UserError, ValueError):
    """A model folder or checkpoint that cannot be used; its text is complete for the user."""


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
    autoencoder = load_autoencoder(run.autoencoder, folder)
    with torch.device("meta"):  # first weights would be made for nothing
        network = build_network(run.network)
    load_weights(network, folder / "model.safetensors")
    return LoadedModel(run, network.eval(), autoencoder, build_process(run.process), folder)


def load_autoencoder(cfg: AutoencoderConfig, folder: Path | None = None) -> Autoencoder:
    """Frozen autoencoder of a run: from `folder/autoencoder.safetensors` if there, else from
    `cfg.pretrained`.
    """
    own = folder / "autoencoder.safetensors" if folder else None
    if isinstance(cfg, PixelConfig):
        autoencoder = build_autoencoder(cfg)
    elif own and own.is_file():
        autoencoder = build_autoencoder(cfg)
        load_weights(autoencoder, own)
    elif cfg.pretrained:
        source = find_model(cfg.pretrained)
        autoencoder = build_autoencoder(resolve_autoencoder(cfg))
        load_weights(autoencoder, source / "model.safetensors")
    else:
        raise ModelError(
            "autoencoder.pretrained is not set: name a bundled autoencoder, the folder of one, or hf:owner/name."
        )
    return autoencoder.requires_grad_(False).eval()


def resolve_autoencoder(cfg: AutoencoderConfig) -> AutoencoderConfig:
    """With `pretrained`, the architecture of that folder; a VQGAN's `quantize` stays as this config
    says.
    """
    if isinstance(cfg, PixelConfig) or not cfg.pretrained:
        return cfg
    folder = find_model(cfg.pretrained)
    architecture = read_run(folder).autoencoder
    if architecture.kind != cfg.kind:
        raise ModelError(
            f"{folder} holds an autoencoder of kind {architecture.kind}; set autoencoder.kind={architecture.kind}."
        )
    kept = {"quantize": cfg.quantize} if isinstance(cfg, VQGANConfig) else {}
    return architecture.model_copy(update={"pretrained": cfg.pretrained, **kept})


def find_model(name_or_dir: str | Path) -> Path:
    """Folder of a model: an existing folder, a bundled name, or a model of the hub
    (`hf:owner/name`), fetched. A run folder means its best model, else its last. Raises ModelError,
    HubError.
    """
    if repo_id := repo_id_of(str(name_or_dir)):
        return download(repo_id)
    for folder in (Path(name_or_dir), BUNDLED / str(name_or_dir)):
        of_a_run = () if (folder / "model.safetensors").is_file() else ("model-best", "model")
        for place in (*(folder / name for name in of_a_run), folder):
            if (place / "config.yaml").is_file():
                return place
    if is_repo_id(str(name_or_dir)) and not Path(name_or_dir).exists():
        raise ModelError(
            f"{name_or_dir}: no such folder; for a model of the hub write {PREFIX}{name_or_dir}."
        )
    names = ", ".join(sorted(path.parent.name for path in BUNDLED.glob("*/config.yaml"))) or "none"
    raise ModelError(
        f"{name_or_dir}: neither a model folder (with a config.yaml) nor a bundled model; bundled are: {names}."
    )


def read_run(folder: Path) -> Run:
    path = folder / "config.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ModelError(f"{path}: not a readable config; copy the model folder again.") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path}: holds no keys; copy the model folder again.")
    return validate(_of_today(values), {}, str(path))


def _of_today(values: dict) -> dict:
    """A config as earlier versions wrote it: `loss.fraction` is gone, and regression samples by
    ancestral alone.
    """
    if isinstance(values.get("loss"), dict):
        values["loss"].pop("fraction", None)
    if isinstance(values.get("process"), dict) and values["process"].get("kind") == "regression":
        values["sampler"] = {"kind": "ancestral"}
    return values


def load_weights(module: nn.Module, path: Path) -> None:
    """Strict: what is missing, extra or of another shape raises ModelError."""
    state = read_tensors(path)
    own = module.state_dict()
    wrong = [k for k in own if k not in state or state[k].shape != own[k].shape] + [
        k for k in state if k not in own
    ]
    if wrong:
        raise ModelError(
            f"{path}: {len(wrong)} weights do not fit config.yaml beside it, the first is {wrong[0]!r}."
        )
    # copies: a file's tensors lie unaligned in memory, where sums round otherwise
    state = {key: value.to(own[key].dtype, copy=True) for key, value in state.items()}
    module.load_state_dict(state, assign=any(x.is_meta for x in own.values()))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file; missing or cut short raises ModelError."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file; the model folder is incomplete, copy it again.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
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
