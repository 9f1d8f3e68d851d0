"""Training and validation pairs: aligned patches of HR pictures and of the LR pictures made from
them.

Which patch is sample n of a run is a pure function of (seed, n) and of the files, so a resumed run
sees what it would have seen. With N pictures, sample n shows picture permutation(seed, n // N)[n %
N], at a place and a symmetry drawn from (seed, n).

Bicubic: the LR picture is made once from the WHOLE HR picture, then cut, so that patches carry no
border effects of resampling. Blind: every sample has a degradation of its own, drawn from (seed, n)
and applied to a window around its patch; see `_window`. Scales (`cfg.scales`): batch k has one
scale of that range, drawn from (seed, k). Bicubic brings each HR patch, by itself, to that scale;
its LR patch, made at `scale`, stays as it is.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm_dream.config.data import BlindConfig, DataConfig
from ldm_dream.data.blind import degrade_blind, mirrored
from ldm_dream.data.images import (
    ImageError,
    image_size,
    in_words,
    list_images,
    read_image,
    to_uint8,
)
from ldm_dream.data.resize import degrade, imresize_levels
from ldm_dream.errors import UserError, shown

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
_PERMUTATION, _CROP, _DEGRADATION, _VALIDATION, _SCALE = (
    0,
    1,
    2,
    3,
    4,
)
# LR pixels around a patch that are degraded with it: as far as the final sinc filter reaches
MARGIN = 10
JPEG_BLOCK = 16  # LR pixels a side of what JPEG with 4:2:0 treats as one


class DataError(UserError, ValueError):
    """Training data that cannot be used; its text is complete for the user."""


@dataclass(frozen=True)
class Draw:
    """Where a sample comes from: picture index, top left corner in LR pixels, symmetry in 0..7."""

    picture: int
    top: int
    left: int
    symmetry: int


@dataclass(frozen=True)
class Batch:
    """hr [B,3,P,P] and lr [B,3,P/scale,P/scale], float32 in [-1, 1]; `lr is hr` when scale is 1 and
    the degradation bicubic.

    With `cfg.scales` hr is [B,3,S,S], the same patches at the batch's own scale: S =
    round(scale_of_batch * P/scale). draws: where each sample comes from. z0, z_lr: their latents
    where `latents.py` has cached them.
    """

    hr: Tensor
    lr: Tensor
    draws: tuple[Draw, ...] = ()
    z0: Tensor | None = None
    z_lr: Tensor | None = None

    def to(self, device: torch.device, memory_format: torch.memory_format) -> Batch:
        moved = {
            name: value.to(device, memory_format=memory_format, non_blocking=True)
            for name in ("hr", "lr", "z0", "z_lr")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **moved)


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
        self.bad: set[Path] = set()
        self.small: list[Path] = []
        self.files: list[Path] = []
        self._cache: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._cache_bytes = 0
        self._seen = _collect(cfg.train, cfg.exclude, "data.train")
        for path in self._seen:
            try:
                size = image_size(path)
            except ImageError as error:
                self._reject(path, error)
                continue
            (self.files if min(size) >= cfg.patch else self.small).append(path)
        if self.small:
            log.warning(
                "%d of %d pictures are smaller than data.patch=%d and are left out.",
                len(self.small),
                len(self._seen),
                cfg.patch,
            )
        if not self.files:
            raise DataError(
                f"data.train: none of {len(self._seen)} pictures can be used ({len(self.small)} smaller than "
                f"data.patch={cfg.patch}, {len(self.bad)} unreadable); add pictures or lower data.patch."
            )

    def __len__(self) -> int:
        """Number of pictures: an epoch is one patch from each."""
        return len(self.files)

    def fingerprint(self) -> dict[str, int | str]:
        """How many pictures, and the digest of their names and sizes in bytes, in order: another one
        means other samples.
        """
        lines = (f"{path.name} {path.stat().st_size}\n" for path in self.files)
        found = hashlib.sha256("".join(lines).encode(errors="surrogateescape"))
        return {"count": len(self.files), "sha256": found.hexdigest()}

    def counts(self) -> dict[str, int]:
        """Entry of `cfg.train`, a folder or a file -> how many of its pictures are used. One that
        several hold counts for the first.
        """
        counts = dict.fromkeys(self.cfg.train, 0)
        for path in self.files:
            places = {path, *path.parents}
            counts[next(entry for entry in counts if Path(entry) in places)] += 1
        return counts

    def batch(self, number: int, batch_size: int) -> Batch:
        """Batch number 0, 1, .. of the run; equal arguments give equal tensors, in any order of
        calls.
        """
        return self.samples(
            range(number * batch_size, (number + 1) * batch_size), self._hr_side(number)
        )

    def samples(
        self, numbers: Iterable[int], hr_side: int | None = None, lr: Tensor | None = None
    ) -> Batch:
        """The samples of these numbers, as one batch. hr_side: pixels a side of hr, None =
        `cfg.patch`. lr: if known already.
        """
        numbers = list(numbers)
        visits = [self._visit(n) for n in numbers]
        draws = tuple(draw for draw, _, _ in visits)
        hr = torch.stack([self._cut(hr, draw, self.scale) for draw, hr, _ in visits])
        hr = to_float(_turn(imresize_levels(hr, *(hr_side or self.cfg.patch,) * 2), draws))
        if lr is None and self.blind:
            lr = self._blind_lr(self.blind, numbers, draws, [hr for _, hr, _ in visits])
        elif lr is None:
            cuts = (self._cut(lr, draw, 1) for draw, _, lr in visits if lr is not None)
            lr = hr if self.scale == 1 else to_float(_turn(cuts, draws))
        return Batch(hr, lr, draws)

    def picture(self, index: int) -> tuple[Tensor, Tensor | None]:
        """Whole picture: uint8 hr [3,H,W], its sides cut to multiples of scale, and lr
        [3,H/scale,W/scale]. Raises ImageError.

        lr is None with blind degradation, which is another one at each visit.
        """
        if index in self._cache:
            return self._cache[index]
        hr = _read_multiple(self.files[index], self.scale)
        pair = hr, None if self.blind else degrade(hr, self.scale)
        size = sum(t.numel() for t in {*pair} if t is not None)  # at scale 1 both are one tensor
        if self._cache_bytes + size <= CACHE_BYTES:
            self._cache[index] = pair
            self._cache_bytes += size
        return pair

    def _hr_side(self, number: int) -> int:
        """HR pixels a side in batch `number`: those of the patch at a scale uniform in
        `cfg.scales`, as IDM trains.
        """
        if self.cfg.scales is None:
            return self.cfg.patch
        scale = np.random.default_rng((self.seed, _SCALE, number)).uniform(*self.cfg.scales)
        return round(self.cfg.patch // self.scale * scale)

    def _blind_lr(
        self,
        cfg: BlindConfig,
        numbers: list[int],
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
        return _turn(patches, draws) * 2 - 1

    def _visit(self, n: int) -> tuple[Draw, Tensor, Tensor | None]:
        """Draw number n with its whole hr and lr; an unreadable picture gives its place to the next
        readable one.
        """
        epoch, place = divmod(n, len(self.files))
        index = int(permutation(len(self.files), self.seed, epoch)[place])
        while (pair := self._try_picture(index)) is None:
            index = (index + 1) % len(self.files)
        hr, lr = pair
        height, width = (length // self.scale for length in hr.shape[-2:])
        side = self.cfg.patch // self.scale
        random = np.random.default_rng((self.seed, _CROP, n))
        top, left = random.integers(height - side + 1), random.integers(width - side + 1)
        symmetry = random.integers(SYMMETRIES[self.cfg.augment])
        return Draw(index, int(top), int(left), int(symmetry)), hr, lr

    def _cut(self, image: Tensor, draw: Draw, zoom: int) -> Tensor:
        """The patch of a draw, not yet turned, from the picture whose pixels are `zoom` times finer
        than LR pixels.
        """
        side = self.cfg.patch // self.scale * zoom
        top, left = draw.top * zoom, draw.left * zoom
        return image[:, top : top + side, left : left + side]

    def _try_picture(self, index: int) -> tuple[Tensor, Tensor | None] | None:
        if self.files[index] in self.bad:
            return None
        try:
            return self.picture(index)
        except ImageError as error:
            self._reject(self.files[index], error)
            return None

    def _reject(self, path: Path, error: ImageError) -> None:
        self.bad.add(path)
        log.warning("%s It is passed over.", error)
        fraction = len(self.bad) / len(self._seen)
        if fraction > self.cfg.max_bad_fraction or len(self.bad) + len(self.small) == len(
            self._seen
        ):
            raise DataError(
                f"data.train: {len(self.bad)} of {len(self._seen)} pictures cannot be read, the last one because: {error} "
                f"Fix or remove them, or raise data.max_bad_fraction={self.cfg.max_bad_fraction}."
            )


def validation_pairs(
    cfg: DataConfig, scale: int, limit: int, crop: int | None
) -> list[tuple[str, Tensor, Tensor]]:
    """(name, hr [1,3,H,W], lr [1,3,H/scale,W/scale]) of up to `limit` pictures of `cfg.val`,
    float32 in [-1, 1].

    The pictures are spread evenly over the sorted files and cut at the centre to at most `crop` HR
    pixels a side, in multiples of 8 * scale; lr is made from the cut hr, so each pair is a whole
    test picture. A blind degradation is drawn from the place of the picture among the sorted files,
    whatever the run's seed and `limit`. Raises DataError or ImageError: a validation set that loses
    pictures silently cannot be compared.
    """
    if limit == 0 or not cfg.val:
        return []
    files = _collect(cfg.val, cfg.exclude, "data.val")
    count = min(limit, len(files))
    chosen = [i * (len(files) - 1) // max(count - 1, 1) for i in range(count)]
    unit = 8 * scale
    pairs = []
    for index in chosen:
        path = files[index]
        hr = _read_uint8(path)
        height, width = (min(side, crop or side) // unit * unit for side in hr.shape[-2:])
        if not height or not width:
            raise DataError(
                f"{path}: smaller than {unit} pixels, the least for validation at scale {scale}; remove it from data.val."
            )
        top, left = (hr.shape[-2] - height) // 2, (hr.shape[-1] - width) // 2
        hr = hr[None, :, top : top + height, left : left + width]
        if isinstance(cfg.degradation, BlindConfig):
            lr = (
                degrade_blind(hr.float() / 255, scale, cfg.degradation, [(0, _VALIDATION, index)])
                * 2
                - 1
            )
        else:
            lr = to_float(degrade(hr, scale))
        pairs.append((path.stem, to_float(hr), lr))
    return pairs


def to_float(pixels: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return pixels.float().mul_(2 / 255).sub_(1)


def _collect(folders: tuple[str, ...], exclude: tuple[str, ...], knob: str) -> list[Path]:
    """Sorted pictures of all folders without those whose path (as written in the config) contains a
    part of `exclude`.
    """
    if not folders:
        raise DataError(f"{knob}: no folder is given; set it to a list of folders with pictures.")
    try:
        listings = {folder: list_images(folder, recursive=True) for folder in folders}
    except ImageError as error:
        raise DataError(f"{knob}: {error}") from None
    for folder, listing in listings.items():
        if listing.left_out:
            log.warning(
                "%s: %s also holds %s; not used.", knob, shown(folder), in_words(listing.left_out)
            )
    found = [path for listing in listings.values() for path in listing.pictures]
    kept = sorted({path for path in found if not any(part in path.as_posix() for part in exclude)})
    if not kept:
        raise DataError(
            f"{knob}: all {len(found)} pictures are left out by data.exclude={list(exclude)}."
        )
    return kept


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


def _read_multiple(path: Path, scale: int) -> Tensor:
    """A picture with sides cut to multiples of `scale`."""
    hr = _read_uint8(path)
    height, width = (side // scale * scale for side in hr.shape[-2:])
    return hr[:, :height, :width].contiguous()


def _read_uint8(path: Path) -> Tensor:
    return torch.from_numpy(to_uint8(read_image(path).pixels)).permute(2, 0, 1)


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
