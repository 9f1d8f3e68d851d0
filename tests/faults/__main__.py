"""python -m tests.faults KIND N [--seed S]: one line of counts; exit status 1 where a fault was found."""

import argparse
import importlib
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
KINDS = sorted(
    path.stem
    for path in HERE.glob("[a-z]*.py")
    if path.stem != "runner" and not path.stem.startswith("test_")
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("n", type=int, help="how many")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sys.path.insert(0, str(HERE.parent))  # as pytest has it
    start = time.monotonic()
    tally = importlib.import_module(f"faults.{args.kind}").run(args.n, args.seed)
    for number, what in tally.faults:
        print(f"fault {number}: {what}")
    seconds = time.monotonic() - start
    print(f"{args.kind} {args.n} (seed {args.seed}): {tally}; {seconds:.0f} s")
    return 1 if tally.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
