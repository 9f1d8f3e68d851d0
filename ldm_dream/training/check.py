"""What can be judged of a run before torch is imported and a picture is read."""

from __future__ import annotations

from pathlib import Path

from ldm_dream.config import fits
from ldm_dream.config.autoencoder import VQGANConfig
from ldm_dream.config.places import place_of
from ldm_dream.config.run import WEIGHTS, DiffusionRun, Run
from ldm_dream.errors import ConfigError
from ldm_dream.hub import repo_id_of
from ldm_dream.model_config import AUTOENCODER, ModelError, find_model, resolve_autoencoder
from ldm_dream.training.tracker import check_tracker
from ldm_dream.writing import check_place

_FILES = {
    "lpips_weights": "file with AlexNet and LPIPS weights",
    "vgg_weights": "file with torchvision's VGG16 weights",
}


def check_run(run: Run, run_dir: Path, starts: bool = True) -> Run:
    """-> the run with the architecture of its autoencoder, where that is at hand. Raises ConfigError,
    ModelError, HubError or WriteError for one that would stop later. starts: it is about to train, so
    that models of the hub are fetched and every file must be there; else what is not here is not
    judged.
    """
    check_place(run_dir)
    if starts:
        check_tracker(run.train.tracker)
    for knob, (_, key) in WEIGHTS.items():
        file = getattr(run, key)
        if knob in run.loss.perceptual and not file:
            raise ConfigError(f"loss.{knob} is set but {key} is not: name a {_FILES[key]}.")
        if file and (knob in run.loss.perceptual or knob == "lpips"):  # validation has LPIPS too
            _is_weights(key, Path(file), starts)
    if isinstance(run, DiffusionRun):
        run = _with_autoencoder(run, starts and not (run_dir / AUTOENCODER).is_file())
    elif not isinstance(run.autoencoder, VQGANConfig):
        raise ConfigError(
            f"autoencoder.kind={run.autoencoder.kind} cannot be trained, only imported; train a vqgan."
        )
    elif run.loss.teacher:
        _check_teacher(run.autoencoder, run.loss.teacher, starts)
    for entry in (*run.data.train, *run.data.val):
        if _is_inside(run_dir, place_of(entry).path, run.data.exclude):
            raise ConfigError(
                f"the run folder {run_dir} lies in the data folder {entry}, where its samples would "
                "become data; give another --run-dir."
            )
    if run.train.init_from and starts and not (run_dir / "checkpoints").is_dir():
        find_model(run.train.init_from)
    return run


def not_there(run: Run) -> list[str]:
    """The entries of the run's pictures whose places do not exist, each once. No picture is read."""
    data = run.data
    entries = dict.fromkeys((*data.train, *data.lr, *data.val, *data.val_lr))
    return [entry for entry in entries if not place_of(entry).path.exists()]


def _is_inside(run_dir: Path, folder: Path, exclude: tuple[str, ...]) -> bool:
    inside = run_dir.resolve().is_relative_to(folder.resolve())
    return inside and not any(part in f"{run_dir.as_posix()}/samples/" for part in exclude)


def _is_weights(key: str, path: Path, must_exist: bool) -> None:
    """By its first bytes: a zip archive or pickle of torch, or safetensors."""
    if not must_exist and not path.exists():
        return
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise ConfigError(
            f"{key}={path}: cannot be read ({error.strerror}); "
            f"name a {_FILES[key]}, or set it to null."
        ) from None
    is_safetensors = head[8:] == b"{" and int.from_bytes(head[:8], "little") < 10**8
    if not is_safetensors and not head.startswith((b"PK\3\4", b"\x80")):
        raise ConfigError(
            f"{key}={path}: no file of weights (.pth or .safetensors); "
            f"name a {_FILES[key]}, or set it to null."
        )


def _check_teacher(own: VQGANConfig, given: VQGANConfig, starts: bool) -> None:
    """Its latents and codebook have the form of `own`'s."""
    name = given.pretrained or ""
    if not starts and (repo_id_of(name) or not _is_here(name)):
        return
    teacher = resolve_autoencoder(given)
    for key in ("factor", "embed_dim", "n_embed", "codebook_groups", "latent_scale"):
        if (theirs := getattr(teacher, key)) != (mine := getattr(own, key)):
            raise ConfigError(
                f"loss.teacher={name} has {key}={theirs}, this autoencoder {mine}; set them alike."
            )


def _is_here(name: str) -> bool:
    try:
        find_model(name)
    except ModelError:
        return False
    return True


def _with_autoencoder(run: DiffusionRun, starts: bool) -> DiffusionRun:
    """The network fits the autoencoder that `pretrained` names, and no knob beside it is ignored."""
    given, name = run.autoencoder, run.autoencoder.pretrained
    if not name or (not starts and (repo_id_of(name) or not _is_here(name))):
        return run
    own = resolve_autoencoder(given)
    for key in sorted(given.model_fields_set - {"kind", "pretrained", "sha256"}):
        if (value := getattr(given, key)) != getattr(own, key):
            raise ConfigError(
                f"autoencoder.{key}={value} has no effect: {name} brings its own, {getattr(own, key)}; leave it out."
            )
    try:
        fits.latent(run, own)
    except ValueError as error:
        raise ConfigError(f"autoencoder.pretrained={name}: {error}.") from None
    return run.model_copy(update={"autoencoder": own})
