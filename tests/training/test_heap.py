"""Memory that a step frees stays: the next step faults in few pages, and the peak stays."""

import resource
import sys

import pytest
import torch
from processes import in_a_new_process

from ldm_dream.training.heap import keep_freed_memory


def faults_and_peak(keeps: bool) -> tuple[int, int]:
    """Of six steps after six others: page faults, and most KiB resident."""
    if keeps:
        assert keep_freed_memory()
    net = torch.nn.Sequential(*(torch.nn.Conv2d(16, 16, 3, padding=1) for _ in range(8)))
    before = 0
    for step in range(12):
        if step == 6:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        net(torch.ones(4, 16, 128, 128)).sum().backward()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt - before, usage.ru_maxrss


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's switch")
def test_freed_memory_is_used_again_without_page_faults():
    keep, leave = (in_a_new_process(faults_and_peak, keeps) for keeps in (True, False))
    assert keep[0] < leave[0] / 5
    assert keep[1] < 1.1 * leave[1]
