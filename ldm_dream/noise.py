"""Noise by number: what a sampler adds, as functions k -> a field like z_lr.

`seeded` is a function of seed, number and position alone, so a tile, a batch or a part of a picture
has the noise that the whole picture has there, on every device. It is a counter-based generator,
Philox4x32-10 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011), in torch's
integer operations, so it also runs on the device that wants it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# k = 0: the prior's noise, k = 1 ..: that of the k-th step; unit variance, shaped as z_lr
Noise = Callable[[int], Tensor]

LARGEST_SEED = 2**64 - 1
WORD = 2**32 - 1
ROUNDS = 10
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
STEPS_OF_KEY = 0x9E3779B9, 0xBB67AE85


def gaussian(z_lr: Tensor, generator: torch.Generator | None = None) -> Noise:
    """Noise shaped as z_lr, in its dtype and on its device; None: torch's global generator."""
    device = z_lr.device if generator is None else generator.device
    return lambda k: torch.randn(
        z_lr.shape, generator=generator, device=device, dtype=z_lr.dtype
    ).to(z_lr.device)


def seeded(seed: int, z_lr: Tensor, top: int = 0) -> Noise:
    """Noise shaped as z_lr, a function of (seed, k, channel, y, x); `top` is the row of the picture
    at which z_lr begins. seed: 0 .. LARGEST_SEED.

    The same numbers on every device up to the rounding of logarithm, sine and cosine, for every
    tile and batch size, for every part of the picture, and for each picture of a batch.
    """
    channels, height, width = z_lr.shape[1:]
    key = seed & WORD, seed >> 32
    # four numbers a counter: of four neighbours in a row
    shape = channels, height, -(-width // 4)

    channel, y, x = (torch.arange(length, device=z_lr.device) for length in shape)
    places = x, (y + top)[:, None], channel[:, None, None]

    def noise(k: int) -> Tensor:
        counter = (place.expand(shape).contiguous() for place in places)
        words = philox(*counter, torch.full(shape, k, device=z_lr.device), key)
        field = torch.stack(normal(*words), -1).view(channels, height, -1)[..., :width]
        return field.to(z_lr.dtype).expand_as(z_lr)

    return noise


def philox(
    c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, key: tuple[int, int]
) -> tuple[Tensor, ...]:
    """Counters, int64 of 32 bits each, and a key of two such words -> four words, alike."""
    even, odd, right_even, right_odd = c0, c2, c1, c3
    for i in range(ROUNDS):
        k0, k1 = ((word + i * step) & WORD for word, step in zip(key, STEPS_OF_KEY))
        # 64 bits, the upper one a sign: of its halves only the lower 32 bits are looked at
        first, second = even * MULTIPLIERS[0], odd * MULTIPLIERS[1]
        even = (second >> 32).bitwise_xor_(right_even).bitwise_xor_(k0).bitwise_and_(WORD)
        odd = (first >> 32).bitwise_xor_(right_odd).bitwise_xor_(k1).bitwise_and_(WORD)
        right_even, right_odd = second, first
    return even, right_even & WORD, odd, right_odd & WORD


def normal(*words: Tensor) -> list[Tensor]:
    """Four words -> four independent normal numbers, float32 (Box and Muller 1958); none is larger
    than 6.8.
    """
    found = []
    for radius, angle in (words[:2], words[2:]):
        length = radius.float().add_(0.5).mul_(2**-32).log_().mul_(-2).sqrt_()
        turn = angle.float().mul_(2 * math.pi * 2**-32)
        found += [length * turn.cos(), length.mul_(turn.sin_())]
    return found
