"""The model card of a run: what happened, in the form of the Hugging Face hub.

The front matter (https://huggingface.co/docs/hub/model-cards) is made by huggingface_hub. Nothing is
invented: a licence, a commit or a figure that is not known is said to be so. No path of the author's
disk is in it: of a folder, at most the last two names are.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ldm_dream.config.run import DiffusionRun, Run
from ldm_dream.hub import repo_id_of

# below these a user has a name, which is nobody's business
_HOMES = ("home", "Users", "root", "export")
_MADE_BY = "https://arxiv.org/abs/2312.00210"


@dataclass(frozen=True)
class Facts:
    """What happened in a run up to the model that a card is for.

    name: of the model. step: steps of the optimizer that were made. command: words as a shell takes
    them. commit: of the checkout, None if there is none. versions: package -> version. pictures:
    folder as the config names it -> pictures used. validation: figures of the last one, at
    `validation_step`. history: what changed when the run was started again, {step, key, old, new}.
    """

    name: str
    step: int
    command: str
    commit: str | None
    versions: dict[str, str]
    pictures: dict[str, int]
    validation: Mapping[str, float | None] | None
    validation_step: int | None
    history: list[dict[str, Any]]


def card(run: Run, facts: Facts) -> str:
    """README.md of a model folder: front matter and Markdown."""
    description = _line(run.description)
    parts = [
        f"# {_line(facts.name)}",
        *([f"Its config says: {description}"] if description else []),
        "## What was trained\n" + _listed(_trained(run, facts)),
        "## On what\n" + _listed(_data(run, facts)),
        "## How to make it again\n" + _again(facts),
    ]
    return f"---\n{_front_matter(run)}---\n\n" + "\n\n".join(parts) + "\n"


def shortened(path: str) -> str:
    """A folder or file by its last two names, without those that tell whose disk it was on."""
    given = PurePosixPath(path)
    parts = [part for part in given.parts if part not in ("/", "..", "~")]
    outside = given.is_absolute() or ".." in given.parts
    if outside and parts and parts[0] in _HOMES:
        parts = parts[1 if parts[0] == "root" else 2 :]
    return "/".join(parts[-2:]) or "."


# ------------------------------------------------------------------------------------ front matter


def _front_matter(run: Run) -> str:
    from huggingface_hub import ModelCardData

    short, name = _licence(run.data.license)
    data = ModelCardData(
        library_name="ldm_dream",
        pipeline_tag="image-to-image",
        license=short,
        license_name=name,
        tags=_tags(run),
        base_model=_base_models(run) or None,
    )
    return data.to_yaml() + "\n"


def _tags(run: Run) -> list[str]:
    if not isinstance(run, DiffusionRun):
        return ["super-resolution", "autoencoder", run.autoencoder.kind]
    kind = run.process.kind
    dream = ["dream" if run.loss.p else "drm"] if run.loss.strength else []
    family = ["diffusion"] if run.process.has_noise else []
    return ["super-resolution", *family, *dream, run.network.kind, kind.replace("_", "-")]


def _base_models(run: Run) -> list[str]:
    """Models of the hub that this one stands on."""
    named = (run.train.init_from, getattr(run.autoencoder, "pretrained", None))
    return list(dict.fromkeys(repo for name in named if name and (repo := repo_id_of(name))))


def _licence(given: str | None) -> tuple[str | None, str | None]:
    """(license, license_name): the hub knows some by short names, any other is `other`."""
    if not given or re.fullmatch(r"[a-z0-9][a-z0-9.-]*", given):
        return given or None, None
    return "other", _line(given)


# ------------------------------------------------------------------------------------------- texts


def _trained(run: Run, facts: Facts) -> list[str]:
    made = f"Steps: {facts.step} of {run.train.steps} made"
    what = _diffusion(run) if isinstance(run, DiffusionRun) else _autoencoder(run)
    start = run.train.init_from
    begun = [f"Weights it began with: {_place(start)}"] if start else []
    changed = [
        f"From step {row['step']}: `{row['key']}` {_value(row['old'])} -> {_value(row['new'])}"
        for row in facts.history
    ]
    return [*what, made, *begun, *changed, f"Seed: {run.seed}", _validation(facts)]


def _diffusion(run: DiffusionRun) -> list[str]:
    loss = run.loss
    dream = f"with DREAM ({_MADE_BY}), strength {loss.strength:g}, p {loss.p:g}"
    for name, least in {"lam": loss.min_lam, "a lam": loss.min_shift}.items():
        if loss.strength and least:
            dream += f", samples below {name} {least:g} plain"
    terms = {"pixel": loss.pixel, "LPIPS": loss.lpips, "LPIPS of VGG16": loss.lpips_vgg}
    terms["adversarial"] = loss.adversarial
    more = [f"{weight:g} {name}" for name, weight in terms.items() if weight]
    method = dream if loss.strength else "plain, without DREAM"
    encoder = getattr(run.autoencoder, "pretrained", None)
    space = f"latents of {_place(encoder)}" if encoder else f"autoencoder {run.autoencoder.kind}"
    return [
        f"Super-resolution x{run.scale}: network {run.network.kind}, process {run.process.kind} "
        f"of {run.process.steps} steps, prediction {run.prediction}; {space}",
        f"Loss: {' + '.join([loss.kind, *more])}, {method}",
    ]


def _autoencoder(run: Run) -> list[str]:
    names = ("l1", "lpips", "lpips_vgg", "codebook", "adversarial")
    weights = {name: getattr(run.loss, name) for name in names}
    return [
        f"Autoencoder: {run.autoencoder.kind}",
        "Loss: " + " + ".join(f"{weight:g} {name}" for name, weight in weights.items() if weight),
    ]


def _validation(facts: Facts) -> str:
    if not facts.validation:
        return "Validation: none was made"
    figures = ", ".join(f"{name} {_figure(value)}" for name, value in facts.validation.items())
    return f"Validation at step {facts.validation_step}: {figures}"


def _figure(value: float | None) -> str:
    """null is how the log writes what is no finite number."""
    return "not finite" if value is None or not math.isfinite(value) else f"{value:.4g}"


def _data(run: Run, facts: Facts) -> list[str]:
    found = facts.pictures.items()
    pictures = [f"{count} pictures of `{_line(shortened(folder))}`" for folder, count in found]
    licence = _line(run.data.license or "") or "not given"
    patch = f"Patches of {run.data.patch} pixels"
    if isinstance(run, DiffusionRun):
        made = f"LR pictures made of them: {run.data.degradation.kind}"
        patch += "; LR pictures given" if run.data.lr else f"; {made}"
    return [*(pictures or ["Pictures: not known"]), f"Their licence: {licence}", patch]


def _again(facts: Facts) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    commit = facts.commit or "not known (no checkout)"
    lines = [f"Commit: {commit}", f"Versions: {versions or 'not known'}"]
    command = f"```bash\n{_command(facts.command)}\n```"
    return f"{_listed(lines)}\n\nThe last command, with paths shortened:\n\n{command}"


def _listed(lines: list[str]) -> str:
    return "\n".join(f"- {line}." for line in lines)


def _command(text: str) -> str:
    """Of a shell, on one line."""
    try:
        words = shlex.split(text)
    except ValueError:  # a quote that is not closed
        words = text.split()
    return " ".join(shlex.quote(_line(_paths_shortened(word))) for word in words)


def _place(name: str) -> str:
    """A bundled name or one of the hub as it is, a folder shortened."""
    return f"`{_line(name if repo_id_of(name) else shortened(name))}`"


def _value(value: Any) -> str:
    text = _paths_shortened(_line(str(value)))
    return f"`{text if len(text) <= 100 else text[:97] + '...'}`"


def _paths_shortened(text: str) -> str:
    """Every path in it that begins at the root, at home or above: alone, behind `=`, or in a list."""
    start = r"(^|(?<=[=\[,(\s'\"]))"
    return re.sub(start + r"(?:~|\.\.)?/[^,\])'\"]*", lambda m: shortened(m[0]), text)


def _line(text: str) -> str:
    """On one line, without what a terminal or a page would act on."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(text.replace("`", "'").split())
