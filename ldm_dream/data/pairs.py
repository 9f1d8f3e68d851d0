"""Training pairs: aligned patches of HR pictures and of the LR pictures made from them.

Which patch is sample n of a run is a pure function of (seed, n) and of the files, so a resumed run
sees what it would have seen, whichever process makes it. With N pictures, sample n shows picture
permutation(seed, n // N)[n % N], at a place and a symmetry drawn from (seed, n).

Bicubic: the LR patch is that of the LR picture made from the WHOLE HR picture, so it carries no
border effects of resampling; it is made from the window of HR pixels on which it depends. Blind:
every sample has a degradation of its own, drawn from (seed, n) and applied to a window around its
patch; see `windows.py`. Given (`cfg.lr`): both patches are cut at the same place. Scales (`cfg.scales`):
batch k has one scale of that range, drawn from (seed, k). Bicubic brings each HR patch, by itself, to
that scale; its LR patch, made at `scale`, stays as it is.

    number -> request (in order, in the main process) -> load (any process) -> Samples, uint8
           -> finish (main process) -> Batch, float32 on the device
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm_dream.config.data import BlindConfig, DataConfig
from ldm_dream.data.blind_plan import plan_blind
from ldm_dream.data.images import ImageError
from ldm_dream.data.kept import Piece, Pieces
from ldm_dream.data.memory import room_for_pictures
from ldm_dream.data.resize import imresize_levels, imresize_levels_part, rows_needed, size_of
from ldm_dream.data.scan import HEIGHT, WIDTH
from ldm_dream.data.sources import DataError, Part, Pictures
from ldm_dream.data.windows import Windows, window_of

log = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class Draw:
    """Where a sample comes from: picture index, top left corner in LR pixels, symmetry in 0..7."""

    picture: int
    top: int
    left: int
    symmetry: int


class Visit(NamedTuple):
    """A draw with what its sample needs of its HR picture, and of the LR picture where that is given."""

    draw: Draw
    hr: Piece
    lr: Piece | None


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
    not be read, and why. windows: what lr is to be made of on the device.
    """

    hr: Tensor
    lr: Tensor | None
    draws: tuple[Draw, ...] = ()
    bad: tuple[tuple[int, str], ...] = ()
    windows: Windows | None = None

    def pin_memory(self) -> Samples:
        """In memory from which a GPU copies while the host goes on."""
        hr, lr = self.hr.pin_memory(), self.lr
        if lr is not None:
            lr = hr if lr is self.hr else lr.pin_memory()
        windows = self.windows and self.windows.pin_memory()
        return replace(self, hr=hr, lr=lr, windows=windows)


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
    degrades_on_device: blind degradation is left to `finish`.
    """

    def __init__(self, cfg: DataConfig, scale: int, seed: int):
        if cfg.patch % scale:
            raise DataError(
                f"data.patch={cfg.patch} is not a multiple of scale={scale}; set it to {cfg.patch // scale * scale or scale}."
            )
        self.cfg, self.scale, self.seed = cfg, scale, seed
        self.degrades_on_device = False
        self.blind = cfg.degradation if isinstance(cfg.degradation, BlindConfig) else None
        part = Part(cfg.val_fraction, is_val=False) if cfg.val_fraction else None
        self.pictures = Pictures(cfg.train, cfg.exclude, "data.train", cfg.lr, part)
        self.bad: set[int] = set()
        self._unreadable: dict[int, str] = {}  # place in `pictures` -> why `load` cannot read it
        self.small: list[int] = []
        self.used: list[int] = []
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
        room, given = room_for_pictures(cfg.keep_gib), self.pictures.lr
        of_lr = room // (scale**2 + 1) if given else 0
        self.hr = Pieces(self.pictures, self.used, sizes[self.used], room - of_lr)
        self.lr = None
        if given:
            small = given.headers().table[self.used][:, [HEIGHT, WIDTH]]
            self.lr = Pieces(given, self.used, small, of_lr)

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
        visits = [self._visit(n, request.with_lr, bad) for n in request.numbers]
        draws = tuple(visit.draw for visit in visits)
        patches = [visit.hr.cut(*self._patch(visit.draw)) for visit in visits]
        hr = _turn([imresize_levels(patch, *[request.hr_side] * 2) for patch in patches], draws)
        lr = windows = None
        if not request.with_lr:
            pass
        elif self.blind:
            windows = self._windows(self.blind, request.numbers, visits)
            if not self.degrades_on_device:
                lr, windows = self._degraded(windows, draws), None
        elif self.pictures.lr:
            lr = _turn([lr.cut(*self._lr_patch(draw)) for draw, _, lr in visits if lr], draws)
        elif self.scale == 1:
            lr = hr
        else:
            lr = _turn([self._bicubic_lr(piece, draw) for draw, piece, _ in visits], draws)
        return Samples(hr, lr, draws, tuple(bad), windows)

    def finish(self, samples: Samples, place: Callable[[Tensor], Tensor] = lambda x: x) -> Batch:
        """place: moves a tensor to the device. Raises DataError where too many pictures are bad."""
        self.note_bad(samples)
        hr = to_float(place(samples.hr))
        lr = hr if samples.lr is samples.hr else to_float(self.lr_of(samples, place))
        return Batch(hr, lr, samples.draws)

    def lr_of(self, samples: Samples, place: Callable[[Tensor], Tensor]) -> Tensor:
        """uint8 [B,3,p,p] of samples with LR, on the device."""
        if samples.windows is not None:
            return self._degraded(samples.windows, samples.draws, place)
        assert samples.lr is not None, "asked for without LR"
        return place(samples.lr)

    def note_bad(self, samples: Samples) -> None:
        """Called for all samples in the main process. Raises DataError where too many are bad."""
        for index, reason in samples.bad:
            self._unreadable.setdefault(index, reason)
            self._reject(index, reason)

    def _hr_side(self, number: int) -> int:
        """HR pixels a side in batch `number`: those of the patch at a scale uniform in
        `cfg.scales`, as IDM trains.
        """
        if self.cfg.scales is None:
            return self.cfg.patch
        scale = np.random.default_rng((self.seed, _SCALE, number)).uniform(*self.cfg.scales)
        return round(self.cfg.patch // self.scale * scale)

    def _size(self, draw: Draw) -> tuple[int, int]:
        """(height, width) of the draw's picture, cut to multiples of scale."""
        height, width = self.hr.sizes[draw.picture].tolist()
        return height // self.scale * self.scale, width // self.scale * self.scale

    def _patch(self, draw: Draw) -> tuple[slice, slice]:
        """Rows and columns of a draw's HR patch."""
        top, left = draw.top * self.scale, draw.left * self.scale
        return slice(top, top + self.cfg.patch), slice(left, left + self.cfg.patch)

    def _lr_patch(self, draw: Draw) -> tuple[slice, slice]:
        """Rows and columns of a draw's LR patch in the LR picture."""
        side = self.cfg.patch // self.scale
        return slice(draw.top, draw.top + side), slice(draw.left, draw.left + side)

    def _needed(self, draw: Draw, with_lr: bool) -> tuple[slice, slice]:
        """Rows and columns on which a draw's sample depends."""
        if self.lr or not with_lr:
            return self._patch(draw)
        height, width = self._size(draw)
        if self.blind:
            side = self.cfg.patch // self.scale
            size = height, width
            rows, columns = window_of(draw.top, draw.left, side, self.scale, size)[0]
            return _span(rows), _span(columns)
        rows, columns = self._lr_patch(draw)
        return (
            rows_needed(height, height // self.scale, rows),
            rows_needed(width, width // self.scale, columns),
        )

    def _bicubic_lr(self, piece: Piece, draw: Draw) -> Tensor:
        """The LR patch of a draw, not yet turned, cut from the LR picture, of which no more is made."""
        height, width = self._size(draw)
        small = height // self.scale, width // self.scale
        return imresize_levels_part(piece.cut, (height, width), small, *self._lr_patch(draw))

    def _windows(self, cfg: BlindConfig, numbers: tuple[int, ...], visits: list[Visit]) -> Windows:
        """What the LR patches of samples `numbers` are made of."""
        side, windows, corners = self.cfg.patch // self.scale, [], []
        for draw, piece, _ in visits:
            size = self._size(draw)
            (rows, columns), corner = window_of(draw.top, draw.left, side, self.scale, size)
            windows.append(piece.pixels[:, rows - piece.top][:, :, columns - piece.left])
            corners.append(corner)
        pixels = torch.stack(windows)
        seeds = [(self.seed, _DEGRADATION, n) for n in numbers]
        plans = plan_blind(cfg, self.scale, size_of(pixels), seeds)
        return Windows(pixels, tuple(corners), plans)

    def _degraded(
        self,
        windows: Windows,
        draws: tuple[Draw, ...],
        place: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> Tensor:
        """LR patches, turned as their HR patches are."""
        side = self.cfg.patch // self.scale
        return _turn(windows.degraded(place(windows.pixels), side), draws)

    def _visit(self, n: int, with_lr: bool, bad: list[tuple[int, str]]) -> Visit:
        """Sample number n; an unreadable picture gives its place to the next readable one, and goes
        to `bad`.
        """
        epoch, place = divmod(n, len(self.used))
        picture = int(permutation(len(self.used), self.seed, epoch)[place])
        while True:
            draw = self._draw(n, picture)
            visit = self._try(draw, with_lr, bad)
            if visit is not None:
                return visit
            picture = (picture + 1) % len(self.used)
            if len(self._unreadable) == len(self.used):
                raise self._too_many(len(self.used), next(reversed(self._unreadable.values())))

    def _draw(self, n: int, picture: int) -> Draw:
        height, width = (length // self.scale for length in self.hr.sizes[picture].tolist())
        side = self.cfg.patch // self.scale
        random = np.random.default_rng((self.seed, _CROP, n))
        top, left = random.integers(height - side + 1), random.integers(width - side + 1)
        return Draw(
            picture, int(top), int(left), int(random.integers(SYMMETRIES[self.cfg.augment]))
        )

    def _try(self, draw: Draw, with_lr: bool, bad: list[tuple[int, str]]) -> Visit | None:
        index = self.used[draw.picture]
        if index in self._unreadable:
            return None
        try:
            hr = self.hr.piece(draw.picture, *self._needed(draw, with_lr))
            lr = self.lr.piece(draw.picture, *self._lr_patch(draw)) if self.lr else None
            return Visit(draw, hr, lr)
        except ImageError as error:
            bad.append((index, str(error)))
            self._unreadable[index] = str(error)
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


def _span(line: Tensor) -> slice:
    return slice(int(line.min()), int(line.max()) + 1)


def symmetry(image: Tensor, which: int) -> Tensor:
    """The eight symmetries of the square: bit 0 mirrors, bit 1 flips, bit 2 transposes."""
    if which & 1:
        image = image.flip(-1)
    if which & 2:
        image = image.flip(-2)
    return image.transpose(-1, -2) if which & 4 else image


def _turn(images: Sequence[Tensor], draws: Sequence[Draw]) -> Tensor:
    """Each image [3,P,P] in the symmetry of its draw -> [B,3,P,P], copied once."""
    turned = images[0].new_empty(len(images), *images[0].shape)
    for place, image, draw in zip(turned, images, draws):
        place.copy_(symmetry(image, draw.symmetry))
    return turned


@functools.lru_cache(maxsize=4)
def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """Order of `count` things in round `epoch`: a function of (seed, epoch)."""
    return np.random.default_rng((seed, _PERMUTATION, epoch)).permutation(count)
