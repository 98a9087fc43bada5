"""The list of crops that `PrismClient.catalog` returns, as notebooks show it."""

from __future__ import annotations

import time
from pathlib import Path

from prismcache.errors import PrismError
from prismcache.html import Html, table
from prismcache.numbers import format_bytes
from prismcache.schema import CropInfo

_DRAWING_S = 1.5  # for all thumbnails together; a full-size crop takes some 40 ms, on a slow mount longer


class Catalog(list[CropInfo]):
    """The crops of a catalog; a list that notebooks show as a table, with thumbnails of files on this machine."""

    def _repr_html_(self) -> str:
        until = time.monotonic() + _DRAWING_S
        rows = [
            (
                info.split.value,
                info.crop,
                info.state.value,
                info.raw_shape,
                info.labels_shape,
                None if info.source_bytes is None else format_bytes(info.source_bytes),
                _thumbnail(info) if time.monotonic() < until else None,
            )
            for info in self
        ]
        head = ["split", "crop", "state", "raw", "labels", "in the bucket", "middle slice"]
        return table(f"{len(self)} crops", head, rows)


def _thumbnail(info: CropInfo) -> Html | None:
    """Return a picture of the crop's fullest file; None if this machine has no such file, or cannot read it."""
    for file in sorted(info.files, key=lambda file: len(file.channels), reverse=True):
        try:
            from prismcache.crop import Crop
            from prismcache.crop.picture import thumbnail

            if Path(file.path).is_file():
                with Crop(file.path) as crop:
                    return thumbnail(crop)
        except (PrismError, OSError):
            continue
    return None
