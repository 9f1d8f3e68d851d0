"""Compile every kernel for real GPUs, without one, and keep or compare the table of what came out.

python tools/compile_kernels.py --check

Registers, spills, shared memory, widest accesses, bytes an element against the least possible, and
the time these predict, for A100, H100, B200 and MI300X. Without --check the table is written anew;
a kernel that got worse on purpose is committed with it.
"""

import argparse
from pathlib import Path

from ldm_dream.cli import command_line, user_errors
from ldm_dream.errors import UserError
from ldm_dream.writing import check_outputs, whole_file

TABLE = Path(__file__).resolve().parents[1] / "benchmarks/results/kernels-aot.csv"


def build_parser() -> argparse.ArgumentParser:
    parser = command_line("compile_kernels.py", __doc__, is_tool=True)
    add = parser.add_argument
    add("ops", nargs="*", metavar="OP", help="only these rows of OPS (default: all)")
    add(
        "--check",
        action="store_true",
        help="write nothing; exit 1 if spills, narrower accesses or more bytes appeared",
    )
    add(
        "--table",
        type=Path,
        default=TABLE,
        metavar="FILE.csv",
        help="default: benchmarks/results/kernels-aot.csv",
    )
    return parser


def main() -> None:
    args = build_parser().parse_args()
    with user_errors():
        try:
            from dream_kernels import OPS, _aot  # here: --help needs no torch
        except ModuleNotFoundError as error:
            raise UserError(
                f"compile_kernels.py needs {error.name}, which is not installed; pip install {error.name}."
            ) from error
        if unknown := set(args.ops) - set(OPS):
            raise UserError(
                f"{', '.join(sorted(unknown))}: no such op; there are {', '.join(OPS)}."
            )
        ops = args.ops or list(OPS)
        check_outputs([] if args.check else [args.table], [])
        kept = _aot.read(args.table) if args.table.is_file() else []
        rows = _aot.report(ops)
    for row in rows:
        print(
            "  ".join(
                f"{value:>{width}}"
                for value, width in zip(row, (15, 46, 7, 4, 3, 6, 4, 4, 2, 6, 6, 8))
            )
        )
    if args.check:
        losses = _aot.worse(rows, kept)
        print(*losses, f"{len(rows)} rows, {len(losses)} worse than {args.table.name}", sep="\n")
        raise SystemExit(bool(losses))
    with user_errors(), whole_file(args.table) as draft:
        _aot.write(draft, rows + [row for row in kept if args.ops and row.op not in ops])


if __name__ == "__main__":
    main()
