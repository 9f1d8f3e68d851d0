"""Memory that a step frees stays: the next step faults in few pages, and the peak stays. Of a
picture, features stay and bands go back.
"""

import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import in_a_new_process

import ldm_dream.upscaling.upscaler as upscaler_module
from ldm_dream.heap import keep_freed_memory, keep_small_blocks
from ldm_dream.upscaling.upscaler import Upscaler

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's switch")


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


def test_freed_memory_is_used_again_without_page_faults():
    keep, leave = (in_a_new_process(faults_and_peak, keeps) for keeps in (True, False))
    assert keep[0] < leave[0] / 5
    assert keep[1] < 1.1 * leave[1]


def after_blocks(mib: int) -> tuple[int, int]:
    """Of blocks of `mib` that make 160 MiB, which small ones lie between, freed and made again: bytes
    resident while they are free, and page faults of the second time.
    """
    assert keep_small_blocks()
    count, numbers = 160 // mib, mib * 2**18
    blocks = [(torch.ones(numbers), torch.ones(2**10)) for _ in range(count)]
    between = [small for _, small in blocks]
    del blocks
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    again = [torch.ones(numbers) for _ in range(count)]
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return pages * resource.getpagesize() * (len(again) == len(between)), faults


def test_small_blocks_stay_and_big_ones_go_back():
    small, big = (in_a_new_process(after_blocks, mib) for mib in (8, 40))
    assert big[0] < small[0] - 100 * 2**20
    assert small[1] < big[1] / 5


def further_pictures(tunes: bool) -> int:
    """Page faults of four pictures after two others."""
    if not tunes:
        upscaler_module.keep_small_blocks = lambda: True
    upscaler = Upscaler.from_pretrained("dream-photo-x4-tiny", "cpu", "fp32")
    picture, before = np.zeros((128, 160, 3), np.uint8), 0
    for number in range(6):
        if number == 2:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        upscaler(picture)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_further_pictures_find_the_memory_of_the_first():
    tuned, plain = (in_a_new_process(further_pictures, tunes) for tunes in (True, False))
    assert tuned < plain / 3
