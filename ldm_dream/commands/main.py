"""`ldm-dream COMMAND ...`: finds the command and gives it the rest of the line."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from ldm_dream import __version__
from ldm_dream.cli import EXIT_USER_ERROR
from ldm_dream.errors import did_you_mean, shown

# command -> file in this folder
COMMANDS = {
    "upscale": "upscale",
    "train": "train",
    "evaluate": "evaluate",
    "plot": "plot",
    "prepare": "prepare_data",
    "import": "import_checkpoint",
    "export": "export_diffusers",
    "release": "release",
    "app": "app",
    "models": "models",
}


def main(words: list[str] | None = None) -> None:
    """words: of the command line, without the program's name; None: those of this process."""
    name, *rest = (sys.argv[1:] if words is None else words) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
    elif name in ("-V", "--version"):
        print(f"ldm-dream {__version__}")
    elif name in COMMANDS:
        command(name)(rest)
    else:
        hint = did_you_mean(name, COMMANDS, f"use one of {', '.join(COMMANDS)}.")
        sys.stderr.write(f"error: there is no command {shown(name)}; {hint}\n")
        raise SystemExit(EXIT_USER_ERROR)


def command(name: str) -> Callable[[list[str] | None], None]:
    """`main` of the file of a command."""
    return import_module(f"ldm_dream.commands.{COMMANDS[name]}").main


def usage() -> str:
    """What each command does, by the first line of its file, which is not imported for it."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {_first_line(file)}" for name, file in COMMANDS.items()]
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


def _first_line(file: str) -> str:
    text = Path(__file__).with_name(f"{file}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
