"""Draws a preview: the middle slice of one channel in grey, with labels in colour over it.

``python -m prismcache_service.engine.local.preview FILE CHANNEL`` writes a PNG to standard output, or a problem: see
`engine.programs`.
"""

from __future__ import annotations

import io
import os
import sys

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.color import label2rgb
from skimage.exposure import rescale_intensity
from skimage.segmentation import find_boundaries

from prismcache.crop import Crop
from prismcache.crop.picture import BRIGHT, OPACITY
from prismcache.errors import CropCorruptError
from prismcache_service.engine.programs import end_program

EDGE = 512
"""Pixels of the longer side at most; of a larger slice only every n-th row and column is shown."""
_NICE = 10  # requests and the making of crops go first


def draw(path: str, channel: int) -> bytes:
    """Return a PNG of at most `EDGE` by `EDGE` pixels, RGB; Y goes down, X to the right.

    Raise `PrismError` if the file cannot be read, or lacks the channel.
    """
    with Crop(path) as crop:
        z, y, x = crop.shape
        step = -(-max(y, x) // EDGE)
        box = z // 2, slice(None, None, step), slice(None, None, step)
        try:
            raw = crop.channel(channel)[box]
            labels = crop.labels[box] if crop.has_labels else np.zeros(raw.shape, np.uint32)
        except OSError as error:
            raise CropCorruptError(f"{path} cannot be read: {error}") from error
    picture = io.BytesIO()
    Image.fromarray(blend(raw, labels)).save(picture, "PNG")
    return picture.getvalue()


def blend(raw: NDArray[np.uint8], labels: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Return (Y, X, 3) uint8 RGB of raw (Y, X) with labels (Y, X) over it: opaque boundaries, translucent insides.

    Label 0 stays grey.
    """
    dark, bright = np.percentile(raw, BRIGHT)
    grey = rescale_intensity(raw.astype(np.float32), in_range=(dark, max(bright, dark + 1)), out_range=(0, 1))
    boundaries = find_boundaries(labels, mode="inner")[..., None]
    inside = label2rgb(labels, grey, alpha=OPACITY, bg_label=0, bg_color=None)
    picture: NDArray[np.float64] = 255 * np.where(boundaries, label2rgb(labels, bg_label=0), inside)
    return picture.astype(np.uint8)


if __name__ == "__main__":
    os.nice(_NICE)
    end_program(lambda: draw(sys.argv[1], int(sys.argv[2])))
