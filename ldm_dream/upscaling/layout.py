"""Layout: how a picture is made, in one piece or in which tiles, and what is tried where memory runs
out.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

from ldm_dream.data.images import ImageError
from ldm_dream.upscaling.devices import TooLittleMemory, UpscaleError
from ldm_dream.upscaling.engine import Engine, Options
from ldm_dream.upscaling.pictures import Frame, Pixels, Source
from ldm_dream.upscaling.sizes import Size
from ldm_dream.upscaling.tiling import Tiles

log = logging.getLogger(__name__)

# LR pixels: tile=None takes a picture of up to 256 x 256 pixels whole, a larger one in tiles of
# that side; a very large one in smaller tiles, since its rows of tiles take memory too (with 184, a
# picture 12000 pixels wide held 2.6 GB)
AUTO_TILE, VERY_LARGE, SMALL_TILE = 256, 2**22, 128


@dataclass(frozen=True)
class Layout:
    """size: of the result. tiles: None = in one piece. calls: of networks, of each tile; one piece
    is a tile. native: the network makes this size itself, of the picture as it is.
    """

    size: tuple[int, int]
    frame: Frame
    calls: int
    tiles: Tiles | None = None
    native: bool = False


def first_layout(engine: Engine, pixels: Pixels, asked: Size, how: Options) -> Layout:
    """Raises ImageError for a result of too many pixels, UpscaleError for a native scale that is not
    possible, UserError for other options.
    """
    size = asked.of(pixels.size)
    check_pixels(size, how.max_pixels)
    is_small = _is_small(pixels, how)
    makes = engine.makes(asked.times(pixels.size), how.native_scale)
    if how.native_scale and not makes:
        raise UpscaleError(
            "native_scale: this model makes no picture of that scale itself; leave it out."
        )
    if how.native_scale and not is_small:
        raise UpscaleError(
            f"native_scale: a picture is taken whole up to {AUTO_TILE}x{AUTO_TILE} pixels, and without "
            "tile; give a smaller one, or leave it out."
        )
    if makes and is_small:
        frame = Frame(Source(pixels), size, 0, size)
        return Layout(size, frame, frame.source.count * engine.calls(how), native=True)
    return _by_own_scale(engine, pixels, size, how)


def check_pixels(size: tuple[int, int], most: int) -> None:
    """Raises ImageError for a result of (height, width) that has more pixels than `most`."""
    if size[0] * size[1] > most:
        raise ImageError(
            f"the result has {size[0] * size[1]} pixels, more than the {most} "
            "allowed; cut it first, or raise max_pixels (--max-pixels)."
        )


def with_less_memory(engine: Engine, layout: Layout, how: Options) -> Layout:
    """The one to try next, which takes less memory. Raises TooLittleMemory where there is none."""
    if engine.give_memory_back():
        log.warning("out of memory on %s: goes on without recorded CUDA graphs.", engine.device)
        return layout
    if layout.native and how.native_scale:
        raise TooLittleMemory(
            f"{engine.device} has too little memory for this picture at a native scale; take the CPU."
        )
    if layout.native:
        layout = _by_own_scale(engine, layout.frame.source.pixels, layout.size, how)
        if layout.tiles:  # of a batch, of which each picture was small enough alone
            log.warning("out of memory on %s: enlarged in tiles instead.", engine.device)
            return layout
    tiles = layout.tiles
    if tiles is None or tiles.align != engine.align:  # pictures were seen in one piece
        layout = replace(layout, frame=_frame(engine, layout.frame.source.pixels, engine.align))
        tiles = _tiles(engine, layout.frame, how, engine.align)
    smaller = tiles.halved()
    if smaller is None:
        raise TooLittleMemory(
            f"{engine.device} has too little memory for the smallest tiles; "
            "lower batch_size or use the CPU."
        )
    before = (
        f"tiles of {max(tiles.shape)} latent pixels become" if layout.tiles else "one piece becomes"
    )
    log.warning("out of memory on %s: %s tiles of %d.", engine.device, before, max(smaller.shape))
    return _in_tiles(engine, layout, smaller, how)


def _by_own_scale(engine: Engine, pixels: Pixels, size: tuple[int, int], how: Options) -> Layout:
    """As the model enlarges it, with context on all sides."""
    small = _is_small(pixels, how)
    grid = engine.multiple if small else engine.align
    frame = _frame(engine, pixels, grid)
    count = frame.source.count
    layout = Layout(size, frame, count * engine.calls(how))
    if small and count <= how.batch_size:
        return layout
    return _in_tiles(engine, layout, _tiles(engine, frame, how, grid), how)


def _frame(engine: Engine, pixels: Pixels, grid: int) -> Frame:
    scale, grid = engine.scale, engine.factor * grid
    source = Source(pixels, engine.context, grid // math.gcd(grid, scale))
    made = source.size[0] * scale, source.size[1] * scale
    inner = pixels.size[0] * scale, pixels.size[1] * scale
    return Frame(source, made, engine.context * scale, inner)


def _tiles(engine: Engine, frame: Frame, how: Options, grid: int) -> Tiles:
    """As large as asked for, else a whole small picture."""
    source, pixels = frame.source, frame.source.pixels
    small = _is_small(pixels, how)
    tile = max(source.size) if small else (how.tile or _auto_tile(pixels)) + 2 * engine.context
    height, width = (side // engine.factor for side in frame.size)
    side, pad = (x * engine.scale / engine.factor for x in (tile, how.tile_pad))
    return Tiles.plan(height, width, side, pad, grid)


def _in_tiles(engine: Engine, layout: Layout, tiles: Tiles, how: Options) -> Layout:
    pictures = layout.frame.source.count
    count = sum(len(tiles.row(i, pictures)) for i in range(len(tiles.bands)))
    return replace(layout, tiles=tiles, calls=how.runs * count * engine.calls(how))


def _auto_tile(pixels: Pixels) -> int:
    return AUTO_TILE if pixels.size[0] * pixels.size[1] <= VERY_LARGE else SMALL_TILE


def _is_small(pixels: Pixels, how: Options) -> bool:
    """Taken whole, where no tiles are asked for."""
    return how.tile is None and pixels.size[0] * pixels.size[1] <= AUTO_TILE**2
