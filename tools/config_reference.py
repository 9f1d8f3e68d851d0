"""Write docs/config.md and docs/config.schema.json, the reference of all knobs, from the models.

python tools/config_reference.py
python tools/config_reference.py --check
"""

import argparse
import json
import sys
from pathlib import Path

from ldm_dream.cli import command_line, user_errors
from ldm_dream.config.reference import json_schema, markdown
from ldm_dream.writing import whole_file

DOCS = Path(__file__).resolve().parents[1] / "docs"


def build_parser() -> argparse.ArgumentParser:
    parser = command_line("config_reference.py", __doc__, is_tool=True)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if a file is not current"
    )
    return parser


def main() -> None:
    args = build_parser().parse_args()
    with user_errors():
        texts = {
            DOCS / "config.md": markdown(),
            DOCS / "config.schema.json": json.dumps(json_schema(), indent=1) + "\n",
        }
        stale = [p for p, text in texts.items() if not p.is_file() or p.read_text("utf-8") != text]
        for path in stale:
            if args.check:
                print(f"{path} is not current; run python tools/config_reference.py")
            else:
                with whole_file(path) as draft:
                    draft.write_text(texts[path], encoding="utf-8")
                print(f"wrote {path}")
        sys.exit(1 if stale and args.check else 0)


if __name__ == "__main__":
    main()
