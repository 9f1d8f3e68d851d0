"""Training pairs: aligned patches of HR pictures and of the LR pictures made from them.

Which patch is sample n of a run is a pure function of (seed, n) and of the files, so a resumed run
sees what it would have seen, whichever process makes it. With N pictures, sample n shows picture
permutation(seed, n // N)[n % N], at a place and a symmetry drawn from (seed, n).

Bicubic: the LR patch is that of the LR picture made from the WHOLE HR picture, so it carries no
border effects of resampling; it is made from the window of HR pixels on which it depends. Blind:
every sample has a degradation of its own, drawn from (seed, n) and applied to a window around its
patch; see `_window`. Given (`cfg.lr`): both patches are cut at the same place. Scales (`cfg.scales`):
batch k has one scale of that range, drawn from (seed, k). Bicubic brings each HR patch, by itself, to
that scale; its LR patch, made at `scale`, stays as it is.

    number -> request (in order, in the main process) -> load (any process) -> Samples, uint8
           -> finish (main process) -> Batch, float32 on the device
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm_dream.config.data import BlindConfig, DataConfig
from ldm_dream.data.blind import degrade_blind, mirrored, to_levels
from ldm_dream.data.images import ImageError
from ldm_dream.data.resize import imresize_levels, imresize_levels_part
from ldm_dream.data.sources import DataError, Files, Part, Pictures

log = logging.getLogger(__name__)

# decoded pictures kept in memory by one dataset; what does not fit is decoded at each visit
CACHE_BYTES = 4 * 2**30
# data.augment -> how many of `symmetry`'s eight it draws from
SYMMETRIES = {
    "none": 1,
    "hflip": 2,
    "dihedral": 8,
}
# streams of random numbers under one seed
_PERMUTATION, _CROP, _DEGRADATION, VALIDATION, _SCALE = (
    0,
    1,
    2,
    3,
    4,
)
# LR pixels around a patch that are degraded with it: as far as the final sinc filter reaches
MARGIN = 10
JPEG_BLOCK = 16  # LR pixels a side of what JPEG with 4:2:0 treats as one


@dataclass(frozen=True)
class Draw:
    """Where a sample comes from: picture index, top left corner in LR pixels, symmetry in 0..7."""

    picture: int
    top: int
    left: int
    symmetry: int


class Request(NamedTuple):
    """A micro-batch to load: numbers of its samples, pixels a side of its HR patches, and whether
    LR is wanted.
    """

    numbers: tuple[int, ...]
    hr_side: int
    with_lr: bool = True


@dataclass(frozen=True)
class Samples:
    """What a process that loads data hands over: hr [B,3,S,S] and lr [B,3,p,p], uint8, lr None where
    not asked for; `lr is hr` when scale is 1 and the degradation bicubic. bad: pictures that could
    not be read, and why.
    """

    hr: Tensor
    lr: Tensor | None
    draws: tuple[Draw, ...] = ()
    bad: tuple[tuple[int, str], ...] = ()

    def pin_memory(self) -> Samples:
        """In memory from which a GPU copies while the host goes on."""
        hr, lr = self.hr.pin_memory(), self.lr
        if lr is not None:
            lr = hr if lr is self.hr else lr.pin_memory()
        return replace(self, hr=hr, lr=lr)


@dataclass(frozen=True)
class Batch:
    """hr [B,3,P,P] and lr [B,3,P/scale,P/scale], float32 in [-1, 1]; `lr is hr` when scale is 1 and
    the degradation bicubic.

    With `cfg.scales` hr is [B,3,S,S], the same patches at the batch's own scale: S =
    round(scale_of_batch * P/scale). draws: where each sample comes from. z0, z_lr: their latents
    where `latents.py` has cached them; hr is then None if no term of the loss asks for it.
    """

    hr: Tensor | None
    lr: Tensor
    draws: tuple[Draw, ...] = ()
    z0: Tensor | None = None
    z_lr: Tensor | None = None


class PairDataset:
    """HR pictures of `cfg.train` as random aligned patches of `cfg.patch` HR pixels. Raises
    DataError.

    Files are looked at (header only) here and decoded on first use. Unreadable ones are named once
    and passed over, ones smaller than a patch are left out; both are counted in `bad` and `small`.
    """

    def __init__(self, cfg: DataConfig, scale: int, seed: int):
        if cfg.patch % scale:
            raise DataError(
                f"data.patch={cfg.patch} is not a multiple of scale={scale}; set it to {cfg.patch // scale * scale or scale}."
            )
        self.cfg, self.scale, self.seed = cfg, scale, seed
        self.blind = cfg.degradation if isinstance(cfg.degradation, BlindConfig) else None
        part = Part(cfg.val_fraction, is_val=False) if cfg.val_fraction else None
        self.pictures = Pictures(cfg.train, cfg.exclude, "data.train", cfg.lr, part)
        self.bad: set[int] = set()
        self._unreadable: set[int] = set()  # that `load` of this process has met
        self.small: list[int] = []
        self.used: list[int] = []
        self._cache: dict[tuple[bool, int], Tensor] = {}  # (is HR, index)
        self._cache_bytes = 0
        sizes, unreadable = self.pictures.sizes(scale)
        for index, reason in unreadable.items():
            self._reject(index, reason)
        sides = sizes.min(1)
        for index in np.flatnonzero(sides).tolist():
            (self.used if sides[index] >= cfg.patch else self.small).append(index)
        if self.small:
            log.warning(
                "%d of %d pictures are smaller than data.patch=%d and are left out.",
                len(self.small),
                len(self.pictures),
                cfg.patch,
            )
        if not self.used:
            raise DataError(
                f"data.train: none of {len(self.pictures)} pictures can be used ({len(self.small)} smaller than "
                f"data.patch={cfg.patch}, {len(self.bad)} unreadable); add pictures or lower data.patch."
            )

    def __len__(self) -> int:
        """Number of pictures: an epoch is one patch from each."""
        return len(self.used)

    def fingerprint(self) -> dict[str, int | str]:
        """Of the pictures in use: another one means other samples."""
        return self.pictures.fingerprint(self.used)

    def counts(self) -> dict[str, int]:
        """Entry of `cfg.train` -> how many of its pictures are used."""
        return self.pictures.counts(self.used)

    def batch(self, number: int, batch_size: int) -> Batch:
        """Batch number 0, 1, .. of the run; equal arguments give equal tensors, in any order of
        calls.
        """
        return self.finish(self.load(self.request(number, batch_size)))

    def request(self, number: int, batch_size: int) -> Request:
        numbers = tuple(range(number * batch_size, (number + 1) * batch_size))
        return Request(numbers, self._hr_side(number))

    def load(self, request: Request) -> Samples:
        """The samples of these numbers, in any process."""
        bad: list[tuple[int, str]] = []
        visits = [self._visit(n, bad) for n in request.numbers]
        draws = tuple(draw for draw, _, _ in visits)
        given = [lr for _, _, lr in visits if lr is not None]
        hr = torch.stack([self._patch(picture, draw) for draw, picture, _ in visits])
        sized = _turn(imresize_levels(hr, request.hr_side, request.hr_side), draws)
        lr = None
        if not request.with_lr:
            pass
        elif self.blind:
            pictures = [picture for _, picture, _ in visits]
            lr = self._blind_lr(self.blind, request.numbers, draws, pictures)
        elif given:
            side = self.cfg.patch // self.scale
            cut = [x[:, d.top : d.top + side, d.left : d.left + side] for x, d in zip(given, draws)]
            lr = _turn(cut, draws)
        elif self.scale == 1:
            lr = sized
        else:
            lr = _turn([self._bicubic_lr(picture, draw) for draw, picture, _ in visits], draws)
        return Samples(sized, lr, draws, tuple(bad))

    def finish(self, samples: Samples, place: Callable[[Tensor], Tensor] = lambda x: x) -> Batch:
        """place: moves a tensor to the device. Raises DataError where too many pictures are bad."""
        self.note_bad(samples)
        assert samples.lr is not None, "asked for without LR"
        hr = to_float(place(samples.hr))
        lr = hr if samples.lr is samples.hr else to_float(place(samples.lr))
        return Batch(hr, lr, samples.draws)

    def note_bad(self, samples: Samples) -> None:
        """Called for all samples in the main process. Raises DataError where too many are bad."""
        for index, reason in samples.bad:
            self._reject(index, reason)

    def picture(self, index: int) -> Tensor:
        """Whole picture, uint8 [3,H,W], its sides cut to multiples of scale. Raises ImageError."""
        return self._kept(self.pictures, index, self.scale)

    def _kept(self, files: Files, index: int, unit: int) -> Tensor:
        """A whole picture, its sides cut to multiples of `unit`. Raises ImageError."""
        key = (files is self.pictures, index)
        if key in self._cache:
            return self._cache[key]
        picture = files.read(index)
        height, width = (side // unit * unit for side in picture.shape[-2:])
        picture = picture[:, :height, :width].contiguous()
        if self._cache_bytes + picture.numel() <= CACHE_BYTES:
            self._cache[key] = picture
            self._cache_bytes += picture.numel()
        return picture

    def _hr_side(self, number: int) -> int:
        """HR pixels a side in batch `number`: those of the patch at a scale uniform in
        `cfg.scales`, as IDM trains.
        """
        if self.cfg.scales is None:
            return self.cfg.patch
        scale = np.random.default_rng((self.seed, _SCALE, number)).uniform(*self.cfg.scales)
        return round(self.cfg.patch // self.scale * scale)

    def _patch(self, picture: Tensor, draw: Draw) -> Tensor:
        """The HR patch of a draw, not yet turned."""
        top, left = draw.top * self.scale, draw.left * self.scale
        return picture[:, top : top + self.cfg.patch, left : left + self.cfg.patch]

    def _bicubic_lr(self, picture: Tensor, draw: Draw) -> Tensor:
        """The LR patch of a draw, not yet turned, cut from the LR picture, of which no more is made."""
        side = self.cfg.patch // self.scale
        height, width = (length // self.scale for length in picture.shape[-2:])
        rows, columns = slice(draw.top, draw.top + side), slice(draw.left, draw.left + side)
        return imresize_levels_part(picture, (height, width), rows, columns)

    def _blind_lr(
        self,
        cfg: BlindConfig,
        numbers: tuple[int, ...],
        draws: tuple[Draw, ...],
        pictures: list[Tensor],
    ) -> Tensor:
        """The LR patches of samples `numbers`, cut out of degraded windows and then turned as their
        HR patches are.
        """
        side = self.cfg.patch // self.scale
        windows, corners = zip(
            *(_window(hr, draw, side, self.scale) for hr, draw in zip(pictures, draws))
        )
        seeds = [(self.seed, _DEGRADATION, n) for n in numbers]
        degraded = degrade_blind(torch.stack(windows).float() / 255, self.scale, cfg, seeds)
        patches = [lr[:, y : y + side, x : x + side] for lr, (y, x) in zip(degraded, corners)]
        return _turn([to_levels(patch) for patch in patches], draws)

    def _visit(self, n: int, bad: list[tuple[int, str]]) -> tuple[Draw, Tensor, Tensor | None]:
        """Draw number n with its whole picture, and the LR picture that is given for it; an
        unreadable one gives its place to the next readable one, and goes to `bad`.
        """
        epoch, place = divmod(n, len(self.used))
        index = int(permutation(len(self.used), self.seed, epoch)[place])
        while (found := self._try_picture(self.used[index], bad)) is None:
            index = (index + 1) % len(self.used)
        picture, given = found
        height, width = (length // self.scale for length in picture.shape[-2:])
        side = self.cfg.patch // self.scale
        random = np.random.default_rng((self.seed, _CROP, n))
        top, left = random.integers(height - side + 1), random.integers(width - side + 1)
        symmetry = random.integers(SYMMETRIES[self.cfg.augment])
        return Draw(index, int(top), int(left), int(symmetry)), picture, given

    def _try_picture(
        self, index: int, bad: list[tuple[int, str]]
    ) -> tuple[Tensor, Tensor | None] | None:
        if index in self.bad or index in self._unreadable:
            return None
        try:
            lr = self.pictures.lr
            return self.picture(index), self._kept(lr, index, 1) if lr else None
        except ImageError as error:
            bad.append((index, str(error)))
            self._unreadable.add(index)
            if self._unreadable.issuperset(self.used):
                raise self._too_many(len(self.used), str(error)) from None
            return None

    def _reject(self, index: int, reason: str) -> None:
        if index in self.bad:
            return
        self.bad.add(index)
        log.warning("%s It is passed over.", reason)
        if len(self.bad) / len(self.pictures) > self.cfg.max_bad_fraction:
            raise self._too_many(len(self.bad), reason)

    def _too_many(self, count: int, reason: str) -> DataError:
        return DataError(
            f"data.train: {count} of {len(self.pictures)} pictures cannot be read, the last one because: {reason} "
            f"Fix or remove them, or raise data.max_bad_fraction={self.cfg.max_bad_fraction}."
        )


def to_float(pixels: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return pixels.float().mul_(2 / 255).sub_(1)


def _window(hr: Tensor, draw: Draw, side: int, scale: int) -> tuple[Tensor, tuple[int, int]]:
    """The HR pixels with which a patch of `side` LR pixels is degraded [3,S,S], and its corner in
    there in LR pixels.

    There are at least MARGIN LR pixels around the patch: real neighbours inside the picture, its
    mirror image outside. S is the same for all patches, so a batch is one tensor. Windows begin on
    the JPEG blocks of the whole picture, so that the borders of blocks lie anywhere in a patch.
    """
    first = [(at - MARGIN) // JPEG_BLOCK * JPEG_BLOCK for at in (draw.top, draw.left)]
    length = side + 2 * MARGIN + JPEG_BLOCK - 1
    rows, columns = (
        mirrored(at * scale, (at + length) * scale, size) for at, size in zip(first, hr.shape[-2:])
    )
    return hr[:, rows][:, :, columns], (draw.top - first[0], draw.left - first[1])


def symmetry(image: Tensor, which: int) -> Tensor:
    """The eight symmetries of the square: bit 0 mirrors, bit 1 flips, bit 2 transposes."""
    if which & 1:
        image = image.flip(-1)
    if which & 2:
        image = image.flip(-2)
    return image.transpose(-1, -2) if which & 4 else image


def _turn(images: Iterable[Tensor], draws: tuple[Draw, ...]) -> Tensor:
    """Each image [3,P,P] in the symmetry of its draw -> [B,3,P,P]."""
    return torch.stack([symmetry(image, draw.symmetry) for image, draw in zip(images, draws)])


@functools.lru_cache(maxsize=4)
def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """Order of `count` things in round `epoch`: a function of (seed, epoch)."""
    return np.random.default_rng((seed, _PERMUTATION, epoch)).permutation(count)
