"""The comparison in docs/compare.md: every cell names what shows it, and that is there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs/compare.md").read_text(encoding="utf-8")
TABLES, _, LISTS = TEXT.partition("## What shows our cells")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TABLES.splitlines()
    if line.startswith("| ") and not line.startswith("| |")
]


def test_every_cell_of_ours_names_a_test_that_exists():
    proofs = dict(re.findall(r"^(\d+)\. (.+)$", LISTS, re.M))
    used = {number for row in ROWS for number in re.findall(r"(?<![\w.-])\d+(?![\w.-])", row[1])}
    assert used == proofs.keys()
    without = [row[0] for row in ROWS if not re.search(r" \d", row[1]) and row[0] != "licence"]
    assert without == []
    named = re.findall(r"`(tests/[\w/.]+)::(\w+)`", LISTS)
    gone = [
        f"{path}::{name}"
        for path, name in named
        if f"def {name}(" not in (ROOT / path).read_text(encoding="utf-8")
    ]
    assert len(named) >= len(proofs) and gone == []


def test_every_cell_of_theirs_that_says_something_has_its_source():
    sources = set(re.findall(r"\b[RUCFD]\d+\b", LISTS))
    used = re.findall(r"\b[RUCFD]\d+\b", TABLES)
    assert set(used) <= sources
    bare = [
        f"{row[0]}: {cell}"
        for row in ROWS
        for cell in row[2:]
        if cell not in ("-", "?") and row[0] != "licence" and not re.search(r"[RUCFD]\d", cell)
    ]
    moving = [
        link for link in re.findall(r"\((https://[^)]+)\)", LISTS) if re.search(r"/main/|#", link)
    ]
    assert moving == [], "links name a commit or a version"
    assert len(ROWS) > 25 and all(len(row) == 7 for row in ROWS) and bare == []
