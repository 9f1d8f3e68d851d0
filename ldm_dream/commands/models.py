"""List the bundled models: name, scale, and what each is for.

examples:
  ldm-dream models
  ldm-dream models --json

exit status:
  0 listed, 2 a mistake in the command or in what it reads (one line says which)
"""

import argparse
import json

from ldm_dream.cli import command_line, user_errors


def build_parser() -> argparse.ArgumentParser:
    parser = command_line("models", __doc__)
    parser.add_argument("--json", action="store_true", help="as JSON, one object a model")
    return parser


def main(words: list[str] | None = None) -> None:
    args = build_parser().parse_args(words)
    with user_errors():
        from ldm_dream.model_config import list_models

        for model in list_models():
            print(json.dumps(model._asdict()) if args.json else model)
