"""The sample grid: one PNG with a row of images per class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from attnbench.storage.atomic import atomic_path

MAX_ROWS, MAX_COLUMNS = 10, 8  # classes, images of each
SMALLEST_SIDE = 48  # pixels; smaller images are enlarged by a whole factor, without smoothing
GAP = 2  # white pixels between images


def write_grid(path: Path, images: np.ndarray, *, num_columns: int) -> None:
    """Write uint8 images [n, H, W, C] as a PNG, `num_columns` to a row; raises StorageError."""
    count, height, width, channels = images.shape
    scale = -(-SMALLEST_SIDE // min(height, width))
    cell_height, cell_width = height * scale + GAP, width * scale + GAP
    num_rows = -(-count // num_columns)
    size = (num_rows * cell_height + GAP, num_columns * cell_width + GAP, channels)
    canvas = np.full(size, 255, np.uint8)
    for i, image in enumerate(images):
        top = i // num_columns * cell_height + GAP
        left = i % num_columns * cell_width + GAP
        enlarged = image.repeat(scale, axis=0).repeat(scale, axis=1)
        canvas[top : top + height * scale, left : left + width * scale] = enlarged
    picture = Image.fromarray(canvas[..., 0] if channels == 1 else canvas)
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)
