"""What upscaling takes where a user says nothing. Imports no torch, as the commands that show it."""

DEFAULT_MODEL = "dream-photo-x4-tiny"
TILE_PAD = 16  # LR pixels on each side of a tile
BATCH_SIZE = 1  # tiles at a time
MAX_PIXELS = 2**29  # of a result
