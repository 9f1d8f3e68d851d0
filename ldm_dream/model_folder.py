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
from ldm_dream.writing import WriteError, damaged, whole_folder

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
    """Write a model folder as a whole. autoencoder: its weights, where the folder is to hold them."""
    if autoencoder is not None and isinstance(run, DiffusionRun):
        own = {"pretrained": None, "sha256": weights_digest(autoencoder)}
        kept = run.autoencoder.model_copy(update=own)
        run = run.model_copy(update={"autoencoder": kept})
    with whole_folder(folder) as draft:
        write_tensors(draft / "model.safetensors", state)
        if autoencoder is not None:
            write_tensors(draft / "autoencoder.safetensors", autoencoder)
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
    `cfg.pretrained`. Raises ModelError where the weights are not those of `cfg.sha256`.
    """
    own = folder / "autoencoder.safetensors" if folder else None
    if isinstance(cfg, PixelConfig):
        return build_autoencoder(cfg).requires_grad_(False).eval()
    if own and own.is_file():
        path, architecture = own, cfg
    elif cfg.pretrained:
        path = find_model(cfg.pretrained) / "model.safetensors"
        architecture = resolve_autoencoder(cfg)
    else:
        raise ModelError(
            "autoencoder.pretrained is not set: name a bundled autoencoder, the folder of one, or hf:owner/name."
        )
    if cfg.sha256 and cfg.sha256 != weights_digest(read_tensors(path)):
        raise ModelError(
            f"{path}: is not the autoencoder that this model was trained with (autoencoder.sha256); "
            "put that one back, or train on the new one."
        )
    autoencoder = build_autoencoder(architecture)
    load_weights(autoencoder, path)
    return autoencoder.requires_grad_(False).eval()


def own_autoencoder(cfg: AutoencoderConfig) -> tuple[AutoencoderConfig, dict[str, Tensor] | None]:
    """A config that names a pretrained autoencoder -> the config with its architecture and digest,
    and the weights that whoever stands on it must keep: None of a bundled one, and of pixels.
    """
    if isinstance(cfg, PixelConfig) or not cfg.pretrained:
        return cfg, None
    folder = find_model(cfg.pretrained)
    tensors = read_tensors(folder / "model.safetensors")
    known = resolve_autoencoder(cfg).model_copy(update={"sha256": weights_digest(tensors)})
    return known, None if folder.parent == BUNDLED else tensors


def weights_digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, whatever file they come from."""
    found = hashlib.sha256()
    for name, value in sorted(packed(tensors).items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


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
    kept: dict[str, object] = {"sha256": cfg.sha256}
    if isinstance(cfg, VQGANConfig):
        kept["quantize"] = cfg.quantize
    return architecture.model_copy(update={"pretrained": cfg.pretrained, **kept})


def find_model(name_or_dir: str | Path) -> Path:
    """Folder of a model: an existing folder, a bundled name, or a model of the hub
    (`hf:owner/name`), fetched. Raises ModelError, HubError.
    """
    if repo_id := repo_id_of(str(name_or_dir)):
        return download(repo_id)
    for folder in (Path(name_or_dir), BUNDLED / str(name_or_dir)):
        if (folder / "config.yaml").is_file():
            return folder
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
        return parse_run(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        raise ModelError(f"{path}: not a readable config; copy the model folder again.") from None


def parse_run(text: str, where: str) -> Run:
    """A resolved config as this or an earlier version wrote it. Raises ModelError, ConfigError."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ModelError(f"{where}: not a readable config; copy the folder again.") from None
    if not isinstance(values, dict):
        raise ModelError(f"{where}: holds no keys; copy the folder again.")
    return validate(_of_today(values), {}, where)


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
    """A safetensors file; missing, cut short or changed since it was written raises ModelError."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file; the model folder is incomplete, copy it again.")
    try:
        if wrong := damaged(path):
            raise ModelError(f"{path}: cut short or damaged: {wrong}; copy it again.")
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: cut short or damaged ({error}); copy it again.") from None


def write_tensors(path: Path, state: dict[str, Tensor]) -> None:
    """A safetensors file. Raises WriteError."""
    try:
        save_file(packed(state), path)
    except SafetensorError as error:
        raise WriteError(f"{path}: cannot be written: {error}.") from None


def packed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in state.items()}
