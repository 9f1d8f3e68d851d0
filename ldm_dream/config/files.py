"""Reading a config: YAML, `base:` inheritance, `--set a.b=value`; a mistake is a `ConfigError`, one
sentence. Imports no torch.

The sentence names the file, the key and the nearest name that exists.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from ldm_dream.config.explain import explain, short
from ldm_dream.config.run import TASKS, Run
from ldm_dream.config.yaml_text import dump_yaml, parse_yaml, read_yaml
from ldm_dream.errors import ConfigError

_RUN = TypeAdapter(Annotated[Run, Field(discriminator="task")])
# sections whose keys depend on their `kind`; loss and sampler have a `kind` too, but one set of
# keys
_KEYS_BY_KIND = {("autoencoder",), ("network",), ("process",), ("data", "degradation")}
# what a base says of itself, and no run that changes it may say
OF_ONE_RUN = ("description", "expected")


PACKAGE = Path(__file__).parents[1]
# the shipped configs lie in the installed package, or beside it in a checkout
SHIPPED = next(
    root / "configs" for root in (PACKAGE, PACKAGE.parent) if (root / "configs").is_dir()
)
MOST_BASES = 16  # files in one chain
MOST_KEYS = 16  # parts of a.b.c in one override


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Run:
    """Read a YAML config with its `base:` chain, apply `a.b=value` overrides, validate. configs/..
    is a shipped one where no folder `configs` is at hand. Raises ConfigError.
    """
    values, origin = _read(_or_shipped(Path(path)), chain=())
    _override(values, overrides, origin)
    return validate(values, origin, str(path))


def with_overrides(run: Run, overrides: list[str] | tuple[str, ...]) -> Run:
    """The run with `a.b=value` overrides on top. Raises ConfigError."""
    values, origin = run.model_dump(mode="json"), {}
    _override(values, overrides, origin)
    return validate(values, origin, "--set")


def _override(
    values: dict, overrides: list[str] | tuple[str, ...], origin: dict[tuple, str]
) -> None:
    """Merge overrides into `values`. A changed `kind` empties its section, so it goes before the
    keys that were meant for the new kind.
    """
    for text in sorted(
        overrides, key=lambda text: not text.partition("=")[0].rstrip().endswith(".kind")
    ):
        key, sign, value = text.partition("=")
        keys = key.strip().split(".")
        if not sign or key.strip() in ("", "base") or len(keys) > MOST_KEYS:
            raise ConfigError(
                f"--set {short(text)}: write it as a.b=value, such as train.steps=1000; `base` belongs into the file."
            )
        where = f"--set {short(text)}"
        _merge(values, _nested(keys, parse_yaml(value, where)), origin, where)


def validate(values: dict, origin: dict[tuple, str], where: str) -> Run:
    """dict -> Run; `origin` says which file each key came from, for the message; keys without one
    come from `where`.
    """
    values = {"task": "diffusion", **values}
    if values["task"] == "autoencoder" and isinstance(values.get("autoencoder"), dict):
        values["autoencoder"] = {"kind": "vqgan", **values["autoencoder"]}
    try:
        return _RUN.validate_python(values)
    except ValidationError as error:
        raise ConfigError(explain(error, TASKS, values, origin, where)) from None


def dump_config(run: Run) -> str:
    """The resolved config as YAML text; `load_config` reads it back to an equal object."""
    return dump_yaml(run.model_dump(mode="json"))


def default_run_dir(config: Path) -> Path:
    """The default run folder of a config: the config's place below the nearest
    folder `configs`, so that no two there share one (configs/tiny/sr3.yaml -> runs/tiny/sr3); of a
    config elsewhere, its name (my/sr3.yaml -> runs/sr3).
    """
    path = Path(os.path.abspath(config)).with_suffix("")
    folders = path.parent.parts
    below = len(folders) - folders[::-1].index("configs") if "configs" in folders else len(folders)
    return Path("runs", *path.parts[below:])


def _or_shipped(path: Path) -> Path:
    is_shipped = path.parts[:1] == (SHIPPED.name,) and not os.path.isdir(SHIPPED.name)
    return SHIPPED.joinpath(*path.parts[1:]) if is_shipped else path


def _read(path: Path, chain: tuple[Path, ...]) -> tuple[dict, dict[tuple, str]]:
    """One file merged over its bases -> (values, which file each key came from). chain: the files
    that led here.
    """
    asked = f" (the `base` of {chain[-1]})" if chain else ""
    try:
        path = path.resolve()
        there = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long a name, NUL, a loop of links
        raise ConfigError(f"{short(path)}: no name of a file{asked}: {_reason(error)}.") from None
    if path in chain:
        raise ConfigError(
            f"{path}: `base` leads in a circle: {' -> '.join(p.name for p in (*chain, path))}; remove one of them."
        )
    if len(chain) >= MOST_BASES:
        raise ConfigError(f"{chain[0]}: more than {MOST_BASES} files by `base`; join some of them.")
    if not there:
        raise ConfigError(f"{path}: no such config file{asked}.{_near_files(path)}")
    values = read_yaml(path, asked)
    base = values.pop("base", None)
    if not isinstance(base, str | None):
        raise ConfigError(
            f"{path}: `base` is {short(repr(base))}; it is the name of one config file, relative to this one."
        )
    merged, origin = _read(path.parent / base, (*chain, path)) if base else ({}, {})
    for key in OF_ONE_RUN:
        merged.pop(key, None)
    _merge(merged, values, origin, str(path))
    return merged, origin


def _nested(keys: list[str], value: Any) -> dict:
    for key in reversed(keys):
        value = {key: value}
    return value


def _merge(into: dict, new: dict, origin: dict[tuple, str], source: str, path: tuple = ()) -> None:
    """Deep merge. A section of _KEYS_BY_KIND that gets another `kind` starts empty: the old keys
    belonged to the old kind.
    """
    for key, value in new.items():
        here = (*path, key)
        old = into.get(key)
        if not isinstance(value, dict):
            into[key] = value
        else:
            other_kind = (
                isinstance(old, dict) and "kind" in value and value["kind"] != old.get("kind")
            )
            if not isinstance(old, dict) or (other_kind and here in _KEYS_BY_KIND):
                into[key] = {}
            _merge(into[key], value, origin, source, here)
        origin[here] = source


def _near_files(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    near = difflib.get_close_matches(
        path.name, [p.name for p in path.parent.glob("*.yaml")], n=1, cutoff=0.4
    )
    return f" Did you mean {path.parent / near[0]}?" if near else ""


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
