"""Reading a config: YAML, `base:` inheritance, `--set a.b=value`; a mistake is a `ConfigError`, one
sentence. Imports no torch.

The sentence names the file, the key and the nearest name that exists.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from ldm_dream.config.explain import explain
from ldm_dream.config.run import TASKS, Run
from ldm_dream.errors import UserError


class ConfigError(UserError, ValueError):
    """A user's mistake in a config or an override; its text is complete for the user."""


_RUN = TypeAdapter(Annotated[Run, Field(discriminator="task")])
# sections whose keys depend on their `kind`; loss and sampler have a `kind` too, but one set of
# keys
_KEYS_BY_KIND = {("autoencoder",), ("network",), ("process",), ("data", "degradation")}
# what a base says of itself, and no run that changes it may say
OF_ONE_RUN = ("description", "expected")


# ------------------------------------------------------------------------------------------ reading


class _Loader(yaml.SafeLoader):
    """SafeLoader for which 2e-4 is a number (YAML 1.1 wants 2.0e-4) and a key given twice is a
    mistake.
    """


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes a text such as "2e-4", which _Loader would read as a number."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
        list("-+0123456789"),
    )


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} is given twice", node.start_mark
            )
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Run:
    """Read a YAML config with its `base:` chain, apply `a.b=value` overrides, validate. Raises
    ConfigError.
    """
    values, origin = _read(Path(path), chain=())
    # a changed `kind` empties its section, so it goes before the keys that were meant for the new
    # kind
    for text in sorted(
        overrides, key=lambda text: not text.partition("=")[0].rstrip().endswith(".kind")
    ):
        key, sign, value = text.partition("=")
        if not sign or key.strip() in ("", "base"):
            raise ConfigError(
                f"--set {text}: write it as a.b=value, such as train.steps=1000; `base` belongs into the file."
            )
        _merge(
            values,
            _nested(key.strip().split("."), _parse(value, f"--set {text}")),
            origin,
            f"--set {text}",
        )
    return validate(values, origin, str(path))


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
    return yaml.dump(run.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, width=120)


def default_run_dir(config: Path) -> Path:
    """The default run folder of a config: the config's place below the nearest
    folder `configs`, so that no two there share one (configs/tiny/sr3.yaml -> runs/tiny/sr3); of a
    config elsewhere, its name (my/sr3.yaml -> runs/sr3).
    """
    path = Path(os.path.abspath(config)).with_suffix("")
    folders = path.parent.parts
    below = len(folders) - folders[::-1].index("configs") if "configs" in folders else len(folders)
    return Path("runs", *path.parts[below:])


def _read(path: Path, chain: tuple[Path, ...]) -> tuple[dict, dict[tuple, str]]:
    """One file merged over its bases -> (values, which file each key came from). chain: the files
    that led here.
    """
    path = path.resolve()
    asked = f" (the `base` of {chain[-1]})" if chain else ""
    if path in chain:
        raise ConfigError(
            f"{path}: `base` leads in a circle: {' -> '.join(p.name for p in (*chain, path))}; remove one of them."
        )
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file{asked}.{_near_files(path)}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read as a text file in UTF-8{asked}: {error}."
        ) from None
    values = {} if (parsed := _parse(text, str(path))) is None else parsed
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: a config is a mapping of keys to values, this is a {type(values).__name__}."
        )
    base = values.pop("base", None)
    if not isinstance(base, str | None):
        raise ConfigError(
            f"{path}: `base` is {base!r}; it is the name of one config file, relative to this one."
        )
    merged, origin = _read(path.parent / base, (*chain, path)) if base else ({}, {})
    for key in OF_ONE_RUN:
        merged.pop(key, None)
    _merge(merged, values, origin, str(path))
    return merged, origin


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  (_Loader is a SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{where}: {place}{error.problem}.") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-01
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())}.") from None


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
