"""Tables of the documents, written from the rows in results/.

A document says where: between the lines `<!-- table: NAME -->` and `<!-- /table -->` stands what
`tables.TABLES[NAME]` makes of the rows, and nothing written by hand.
"""

from __future__ import annotations

import argparse
import re

from ldm_dream.errors import UserError

from .record import RESULTS, ROOT, read
from .tables import TABLES, text

DOCUMENTS = ("README.md", "benchmarks/README.md", "docs/results.md")
BEGIN, END = "<!-- table: ", "<!-- /table -->"
MARKED = re.compile(rf"^({BEGIN}([\w-]+) -->\n).*?^({END})$", re.M | re.S)


def main(args: argparse.Namespace) -> None:
    there, different = [name for name in DOCUMENTS if (ROOT / name).exists()], []
    for path in (ROOT / name for name in there):
        before = path.read_text(encoding="utf-8")
        after = filled(before, path.name)
        if after == before:
            continue
        different.append(path.relative_to(ROOT).as_posix())
        if not args.check:
            path.write_text(after, encoding="utf-8")
    if different and args.check:
        raise SystemExit(
            f"not what the rows say: {', '.join(different)}; run python -m benchmarks table"
        )
    print(f"{'written' if different else 'up to date'}: {', '.join(different or there)}")


def filled(document: str, name: str) -> str:
    """The document with every table made anew. Raises UserError for a table that is not known or
    not closed.
    """
    if document.count(BEGIN) != len(MARKED.findall(document)):
        raise UserError(f"{name}: {BEGIN.strip()} without {END} on a line of its own after it.")

    def table(marked: re.Match) -> str:
        begin, wanted, end = marked.groups()
        if wanted not in TABLES:
            raise UserError(f"{name}: no table {wanted}; there are {', '.join(TABLES)}.")
        path = RESULTS / f"{TABLES[wanted].benchmark}.jsonl"
        return f"{begin}{text(wanted, read(path) if path.exists() else [])}\n{end}"

    return MARKED.sub(table, document)
