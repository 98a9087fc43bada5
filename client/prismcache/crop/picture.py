"""What people see of a crop: its description, and pictures of one slice. Pictures need numpy.

Neither matplotlib nor Pillow is needed: a notebook shows PNG, and a PNG file is a few bytes around one zlib stream
(format: W3C PNG specification, sections 5 and 9). matplotlib takes a `Picture` as it is: ``plt.imshow(crop.show())``.
"""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prismcache.errors import PrismError, StorageError
from prismcache.html import Html
from prismcache.numbers import format_shape, format_voxel_size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prismcache.crop.voxels import OpenCrop

THUMBNAIL_EDGE = 96
"""Pixels of a thumbnail's longer side at most."""

BRIGHT = (1, 99.5)
"""Percentiles of a slice that become black and full brightness; also in the service's previews."""
OPACITY = 0.4
"""Of labels over raw; also in the service's previews."""
_SMALL_EDGE = 300  # pixels; a picture whose longer side is shorter is shown enlarged to about this length


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that notebooks show, that numpy and matplotlib take as an array, and that `save` writes.

    Attributes
    ----------
    pixels
        (Y, X, 3) uint8, red, green, blue; Y goes down, X to the right.
    caption
        What is shown, as one line.
    """

    pixels: NDArray[np.uint8]
    caption: str

    def save(self, path: str | PathLike[str]) -> Path:
        """Write a PNG file, and return its path.

        Raises
        ------
        StorageError
            If the file cannot be written.
        """
        target = Path(path)
        try:
            target.write_bytes(self._repr_png_())
        except OSError as error:
            raise StorageError(f"{target} cannot be written: {error.strerror} (errno {error.errno})") from error
        return target

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:  # noqa: FBT001 - numpy's protocol
        import numpy as np

        return np.array(self.pixels, dtype, copy=copy)

    def __repr__(self) -> str:
        height, width, _ = self.pixels.shape
        return f"<Picture of {width} × {height} pixels, {self.caption}; .save('picture.png') writes it>"

    def _repr_png_(self) -> bytes:
        height, width, _ = self.pixels.shape
        rows = b"".join(b"\0" + row.tobytes() for row in self.pixels)  # filter type 0 before each row
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits a sample, RGB, not interlaced
        parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in parts
        )

    def _repr_html_(self) -> str:
        """Return the picture with its caption, in the notebook's own colours."""
        factor = max(1, _SMALL_EDGE // max(self.pixels.shape))
        return f'<figure style="margin: 0">{self.image(factor)}<figcaption>{escape(self.caption)}</figcaption></figure>'

    def image(self, factor: int = 1) -> Html:
        """Return an ``<img>`` that holds the picture, each pixel `factor` times as wide and as high."""
        source = b64encode(self._repr_png_()).decode("ascii")
        width, words = factor * self.pixels.shape[1], escape(self.caption, quote=True)
        style = "image-rendering: pixelated; max-width: none"
        return Html(f'<img src="data:image/png;base64,{source}" width="{width}" alt="{words}" style="{style}">')


def described(crop: OpenCrop) -> dict[str, str]:
    """Return what a person wants to know of a crop, by name; only the error if the file cannot be read."""
    try:
        shown = {
            "crop": f"{crop.split.value} {crop.crop_id}",
            "channels": ", ".join(map(str, crop.channels)),
        }
        if crop.has_labels:
            shown["labels"] = f"{format_shape(crop.shape)} voxels"
        if not crop.has_labels or crop.raw_shape != crop.shape:
            shown["raw"] = f"{format_shape(crop.raw_shape)} voxels"
        if crop.arrays:
            shown["arrays"] = ", ".join(crop.arrays)
        size, expansion = crop.voxel_size_nm, crop.entry.expansion
    except PrismError as error:
        return {"error": str(error)}
    return shown | {"voxel": "size unknown" if size is None else format_voxel_size(size, expansion)}


def draw(crop: OpenCrop, z: int | None, channels: Sequence[int], *, labels: bool, step: int = 1) -> Picture:
    """Return a picture of one Z slice.

    Parameters
    ----------
    crop
        An open crop.
    z
        Voxels from the labels' first slice; None is the middle.
    channels
        One channel is grey. Of several, the first, fourth, … are red, the second, fifth, … green, the others blue,
        all added up, as E11's shader for neuroglancer does.
    labels
        Whether labels are drawn over raw, each in a colour of its own.
    step
        Show only every `step`-th row and column.

    Raises
    ------
    PrismError
        As `Crop.read` raises them, among them `RequestError` if the crop has no such slice, or has no labels.
    """
    import numpy as np

    z = crop.shape[0] // 2 if z is None else z
    slice_box = (slice(z, z + 1), slice(None), slice(None))
    raw = crop.read(slice_box, channels)[:, 0, ::step, ::step]
    mixed = np.zeros((*raw.shape[1:], 3), np.float32)
    for index, channel in enumerate(raw):
        dark, bright = np.percentile(channel, BRIGHT)
        shown = np.clip((channel - dark) / max(bright - dark, 1), 0, 1)
        mixed[..., slice(None) if len(raw) == 1 else index % 3] += shown[..., None] if len(raw) == 1 else shown
    np.minimum(mixed, 1, out=mixed)
    if labels and 0 <= z < crop.shape[0]:
        _, y, x = crop.context[0]
        found = np.zeros(crop.raw_shape[1:], np.uint32)
        found[y : y + crop.shape[1], x : x + crop.shape[2]] = crop.labels[z]
        found = found[::step, ::step]
        # Hues a golden angle apart, so that labels of near numbers differ.
        hues = found[found > 0][:, None] * 0.618034 + np.array([0, 1 / 3, 2 / 3])
        mixed[found > 0] = (1 - OPACITY) * mixed[found > 0] + OPACITY * (0.5 + 0.5 * np.cos(2 * np.pi * hues))
    numbers = ", ".join(map(str, channels))
    caption = f"{crop.split.value} crop {crop.crop_id}, z {z}, channel{'s' * (len(channels) > 1)} {numbers}"
    return Picture((255 * mixed).astype(np.uint8), caption + ", labels" * labels)


def thumbnail(crop: OpenCrop) -> Html:
    """Return a small picture of the middle slice, first three channels; empty if the crop cannot be read."""
    try:
        step = -(-max(crop.raw_shape[1:]) // THUMBNAIL_EDGE)
        return draw(crop, None, crop.channels[:3], labels=False, step=step).image()
    except PrismError:
        return Html()
