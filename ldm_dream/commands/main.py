"""`ldm-dream COMMAND ...`: finds the command and gives it the rest of the line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

from ldm_dream import __version__
from ldm_dream.cli import user_errors
from ldm_dream.errors import UserError, did_you_mean
from ldm_dream.stopping import ends_when_stopped


class Command(NamedTuple):
    """file: in this folder. does: what it does, the first line of that file."""

    file: str
    does: str


COMMANDS = {
    "upscale": Command("upscale", "Upscale pictures and folders of pictures."),
    "train": Command(
        "train",
        "Train a diffusion model or an autoencoder from a config; the same command again resumes the run.",
    ),
    "evaluate": Command(
        "evaluate",
        "Score results or a model against HR pictures: PSNR, SSIM, LPIPS, NIQE, FID and more.",
    ),
    "plot": Command(
        "plot",
        "Draw the curves of training runs from their metrics.jsonl: one SVG, or TensorBoard's event files.",
    ),
    "prepare": Command(
        "prepare_data",
        "Make the folders of pictures that the configs name, from archives as their publishers give them.",
    ),
    "import": Command(
        "import_checkpoint",
        "Turn a published checkpoint of SR3, IDM, ResShift, LDM-SR, a VQGAN or TAESD into a model folder.",
    ),
    "export": Command(
        "export_diffusers",
        "Write a model folder as parts for diffusers: U-Net, VQGAN and scheduler.",
    ),
    "export-onnx": Command(
        "export_onnx",
        "Write a model folder as ONNX graphs, with the numbers of its sampler.",
    ),
    "release": Command(
        "release",
        "Write a model folder to give away, with its card, from a run or from one of its checkpoints.",
    ),
    "app": Command("app", "Open a web page on this machine that makes pictures larger."),
    "models": Command("models", "List the bundled models: name, scale, and what each is for."),
}


def main(words: list[str] | None = None) -> None:
    """words: of the command line, without the program's name; None: those of this process."""
    if words is None:
        with ends_when_stopped():
            return main(sys.argv[1:])
    name, *rest = words or ["--help"]
    with user_errors():
        if name in ("-h", "--help"):
            print(usage())
        elif name in ("-V", "--version"):
            print(f"ldm-dream {__version__}")
        elif name == "--list-models":
            command("models")(rest)
        elif name in COMMANDS:
            command(name)(rest)
        else:
            hint = did_you_mean(name, COMMANDS, f"use one of {', '.join(COMMANDS)}.")
            raise UserError(f"there is no command {name}; {hint}")


def script(name: str) -> None:
    """The command as a file of tools/, with the words of this process."""
    with ends_when_stopped():
        command(name)(None)


def command(name: str) -> Callable[[list[str] | None], None]:
    """`main` of the file of a command."""
    return import_module(f"ldm_dream.commands.{COMMANDS[name].file}").main


def usage() -> str:
    """What each command does, without an import of its file."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.does}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ldm-dream COMMAND ...",
            "",
            "Make pictures larger, and train the models that do it.",
            "",
            *lines,
            "",
            "ldm-dream COMMAND --help says more. ldm-dream --version prints the version.",
        ]
    )
