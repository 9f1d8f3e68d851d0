"""Which folder a model is in, and what its config.yaml says: all of a model folder that can be read
without torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ldm_dream.config.autoencoder import AutoencoderConfig, PixelConfig, VQGANConfig
from ldm_dream.config.files import validate
from ldm_dream.config.run import AutoencoderRun, Run
from ldm_dream.config.yaml_text import YamlError, parse_mapping, read_yaml
from ldm_dream.errors import UserError, did_you_mean
from ldm_dream.hub import ANYWHERE, PREFIX, HubError, Search, download, is_repo_id, repo_id_of

BUNDLED = Path(__file__).parent / "weights"
WEIGHTS = "model.safetensors"  # in a model folder
AUTOENCODER = "autoencoder.safetensors"  # in one whose autoencoder is not bundled; in a run folder


class ModelError(UserError, ValueError):
    """A model folder or checkpoint that cannot be used; its text is complete for the user."""


class BundledModel(NamedTuple):
    """A super-resolution model that comes with the installation."""

    name: str
    scale: int
    description: str

    def __str__(self) -> str:
        return f"{self.name}  x{self.scale}  {self.description}"


def list_models() -> list[BundledModel]:
    """The bundled models that make pictures larger, by name; autoencoders are none."""
    runs = {name: read_run(BUNDLED / name) for name in bundled_names()}
    return [
        BundledModel(name, run.scale, run.description)
        for name, run in runs.items()
        if not isinstance(run, AutoencoderRun)
    ]


def upscaler_names() -> list[str]:
    """Of `list_models`."""
    return [model.name for model in list_models()]


def bundled_names() -> list[str]:
    """Of all bundled models, autoencoders too."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/config.yaml"))


def is_bundled(name: str | None) -> bool:
    """Whether this name leads to a model of the installation, and to no folder of the user."""
    return name in bundled_names() and find_model(name).parent == BUNDLED


def find_model(
    name_or_dir: str | Path,
    search: Search = ANYWHERE,
    fitting: Callable[[], list[str]] = bundled_names,
) -> Path:
    """Folder of a model: an existing folder, a bundled name, or a model of the hub
    (`hf:owner/name`), fetched. A run folder means its best model, else its last. A search without
    folders: a stranger's config may not name those of the user. fitting: the bundled names that are
    offered for one that is not known. Raises ModelError, HubError.
    """
    name, local = os.path.expanduser(name_or_dir), search.folders
    if repo_id := repo_id_of(name):
        return download(repo_id, search)
    refuse_revision(name, search)
    try:
        if local and (folder := _in_folder(Path(name))):
            return folder
        is_there = Path(name).exists()
    except (OSError, ValueError) as error:  # too long a name, NUL
        raise ModelError(f"{name[:100]}: no name of a folder: {error}.") from None
    if name in bundled_names():
        return BUNDLED / name
    if local and is_repo_id(name) and not is_there:
        raise ModelError(
            f"{name}: no such folder (docs/import.md makes one of published weights); "
            f"for a model of the hub write {PREFIX}{name}."
        )
    what = (
        "neither a model folder (with a config.yaml) nor a bundled model"
        if local
        else ("a model of the hub may name a bundled model or another of the hub, no folder")
    )
    hint = did_you_mean(name, names := fitting(), f"bundled are: {', '.join(names) or 'none'}.")
    raise ModelError(f"{name}: {what}; {hint}")


def refuse_revision(name: str, search: Search) -> None:
    """Raises HubError for a revision of a model that is not of the hub."""
    if search.revision is not None:
        raise HubError(
            f"{name}: no model of the hub (hf:owner/name), so it has no revision; leave that out."
        )


def _in_folder(folder: Path) -> Path | None:
    of_a_run = () if (folder / WEIGHTS).is_file() else ("model-best", "model")
    places = (*(folder / name for name in of_a_run), folder)
    return next((place for place in places if (place / "config.yaml").is_file()), None)


def read_run(folder: Path) -> Run:
    """The run in a model folder. Raises ModelError, ConfigError."""
    path = folder / "config.yaml"
    try:
        return _run_of_today(read_yaml(path), str(path))
    except YamlError as error:
        raise ModelError(f"{error} Copy the model folder again.") from None


def parse_run(text: str, where: str) -> Run:
    """A resolved config as this or an earlier version wrote it. Raises ModelError, ConfigError."""
    try:
        return _run_of_today(parse_mapping(text, where), where)
    except YamlError as error:
        raise ModelError(f"{error} Copy the folder again.") from None


def _run_of_today(values: dict, where: str) -> Run:
    if not values:
        raise ModelError(f"{where}: holds no keys; copy the folder again.")
    return validate(_of_today(values), {}, where)


def resolve_autoencoder(cfg: AutoencoderConfig, search: Search = ANYWHERE) -> AutoencoderConfig:
    """With `pretrained`, the architecture of that folder; a VQGAN's `quantize` stays as this config
    says. search: as for `find_model`.
    """
    if isinstance(cfg, PixelConfig) or not cfg.pretrained:
        return cfg
    folder = find_model(cfg.pretrained, search)
    run = read_run(folder)
    architecture = run.autoencoder
    if not isinstance(run, AutoencoderRun):
        raise ModelError(
            f"{folder}: a super-resolution model, no autoencoder; set autoencoder.pretrained to one."
        )
    if architecture.kind != cfg.kind:
        raise ModelError(
            f"{folder} holds an autoencoder of kind {architecture.kind}; set autoencoder.kind={architecture.kind}."
        )
    kept: dict[str, object] = {"sha256": cfg.sha256}
    if isinstance(cfg, VQGANConfig):
        kept["quantize"] = cfg.quantize
    return architecture.model_copy(update={"pretrained": cfg.pretrained, **kept})


def _of_today(values: dict) -> dict:
    """A config as earlier versions wrote it: `loss.fraction` is gone, and regression samples by
    ancestral alone.
    """
    if isinstance(values.get("loss"), dict):
        values["loss"].pop("fraction", None)
    if isinstance(values.get("process"), dict) and values["process"].get("kind") == "regression":
        values["sampler"] = {"kind": "ancestral"}
    return values
