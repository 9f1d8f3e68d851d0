"""The short form of every kind of fault; docs/faults.md has the long one."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("kind", "n"), [("kills", 8), ("ranks", 2)])
def test_no_fault_is_found(kind, n):
    command = [sys.executable, "-m", "tests.faults", kind, str(n)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"{kind} {n} (seed 0): ")
