"""Memory that a step frees stays: the next step faults in few pages, and the peak stays. Memory of
bands of a picture goes back.
"""

import resource
import sys
from pathlib import Path

import pytest
import torch
from processes import in_a_new_process

from ldm_dream.heap import give_back_freed_memory, keep_freed_memory


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


def resident_after_blocks(gives_back: bool) -> int:
    """Bytes, when 40 blocks of 8 MiB are free that small ones lay between."""
    if gives_back:
        assert give_back_freed_memory()
    torch.ones(6 * 2**20)  # from here on glibc counts blocks of up to 24 MiB as small
    blocks = [(torch.ones(2**21), torch.ones(2**10)) for _ in range(40)]
    kept = [small for _, small in blocks]
    del blocks
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() * (len(kept) == 40)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's switch")
def test_freed_blocks_go_back_from_between_others():
    gives, leaves = (in_a_new_process(resident_after_blocks, gives) for gives in (True, False))
    assert gives < leaves - 200 * 2**20
