"""Memory that a step frees stays: the next step faults in few pages, and the peak stays."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys
import torch
from ldm_dream.training.heap import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
net = torch.nn.Sequential(*(torch.nn.Conv2d(16, 16, 3, padding=1) for _ in range(8)))
for step in range(12):
    if step == 6:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    net(torch.ones(4, 16, 128, 128)).sum().backward()
usage = resource.getrusage(resource.RUSAGE_SELF)
print(usage.ru_minflt - before, usage.ru_maxrss)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's switch")
def test_freed_memory_is_used_again_without_page_faults():
    faults, peak = {}, {}
    for how in ("keep", "leave"):
        done = subprocess.run(
            [sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True
        )
        faults[how], peak[how] = map(int, done.stdout.split())
    assert faults["keep"] < faults["leave"] / 5
    assert peak["keep"] < 1.1 * peak["leave"]
