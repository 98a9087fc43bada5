"""Draws a preview: the middle slice of one channel in grey, with labels in colour over it.

``python -m prismcache_service.engine.local.preview FILE CHANNEL`` writes a PNG to standard output and ends; with status
`FAILED` it writes a `Problem` instead. A process of its own, since the service's touches neither HDF5 nor pixels.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prismcache.crop import Crop
from prismcache.errors import CropCorruptError, PrismError

EDGE = 512
"""Pixels of the longer side at most; of a larger slice only every n-th row and column is shown."""
FAILED = 3
"""Exit status that goes with a problem. (1 and 2 are Python's own.)"""

_NICE = 10  # the API and whoever makes crops go first
_OPACITY = 0.4  # of labels
_BRIGHT = (1, 99.5)  # percentiles of the slice that become black and white
_GOLDEN = 0.618034  # a hue as far as can be from those of the labels before


def draw(path: str, channel: int) -> bytes:
    """A PNG of at most `EDGE` by `EDGE` pixels, RGB; Y goes down, X to the right.

    Raises
    ------
    PrismError
        If the file cannot be read, or lacks the channel.
    """
    with Crop(path) as crop:
        z, y, x = crop.shape
        step = -(-max(y, x) // EDGE)
        box = z // 2, slice(None, None, step), slice(None, None, step)
        try:
            raw, labels = crop.channel(channel)[box], crop.labels[box]
        except OSError as error:
            raise CropCorruptError(f"{path} cannot be read: {error}") from error
    picture = io.BytesIO()
    Image.fromarray(blend(raw, labels)).save(picture, "PNG")
    return picture.getvalue()


def blend(raw: NDArray[np.uint8], labels: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """(Y, X, 3) uint8 from raw (Y, X) and labels (Y, X), whose 0 stays grey."""
    dark, bright = np.percentile(raw, _BRIGHT)
    grey: NDArray[np.float32] = np.clip((raw - np.float32(dark)) / max(bright - dark, 1), 0, 1).astype(np.float32)
    picture = np.repeat(grey[..., None], 3, axis=2)
    shown = labels > 0
    picture[shown] = (1 - _OPACITY) * picture[shown] + _OPACITY * _colours(labels[shown])
    return (255 * picture).astype(np.uint8)


def _colours(labels: NDArray[np.uint32]) -> NDArray[Any]:
    """(n, 3) float RGB of (n,) labels: a bright hue for each."""
    hue = labels[:, None] * _GOLDEN + np.array([0, 1 / 3, 2 / 3])
    colours: NDArray[Any] = 0.5 + 0.5 * np.cos(2 * np.pi * hue)
    return colours


def main() -> None:
    """Entry point of the process."""
    os.nice(_NICE)
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("channel", type=int)
    arguments = parser.parse_args()
    try:
        answer, status = draw(arguments.file, arguments.channel), 0
    except PrismError as error:
        answer, status = error.to_problem().model_dump_json().encode(), FAILED
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()
    raise SystemExit(status)


if __name__ == "__main__":
    main()
