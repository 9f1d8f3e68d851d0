"""Memory that a step frees stays: the next step of the same size faults in next to no pages."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys
import torch
from ldm_dream.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
faults = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x = torch.ones(64, 2**20)
    del x
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[-1])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's switch")
def test_freed_memory_is_used_again_without_page_faults():
    faults = {}
    for how in ("keep", "leave"):
        done = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True)
        faults[how] = int(done.stdout)
    assert faults["keep"] < 100 and faults["keep"] < faults["leave"] / 10
