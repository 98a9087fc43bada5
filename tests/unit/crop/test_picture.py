"""Pictures of a crop: which voxel gets which colour, and what notebooks are given."""

from __future__ import annotations

import io
import re
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prismcache import Crop, CropInfo, RequestError, StorageError, UnknownChannelError
from prismcache._testing_files import crop_arrays, write_crop
from prismcache.client.catalog import Catalog
from prismcache.schema import CropFile, Split
from tests.support.context_crops import write_context_crop

BEFORE = (2, 3, 4)


@pytest.fixture(scope="module")
def crop(tmp_path_factory: pytest.TempPathFactory) -> Crop:
    """Four channels, each bright in a quadrant of its own, with one label and with context."""
    raw = np.zeros((4, 8, 20, 24), np.uint8)
    for channel, (y, x) in enumerate([(0, 0), (0, 12), (10, 0), (10, 12)]):
        raw[channel, :, y : y + 10, x : x + 12] = 200
    labels = np.zeros((4, 12, 16), np.uint64)
    labels[:, 2:4, 5:9] = 77
    return Crop(write_context_crop(tmp_path_factory.mktemp("root") / "crop_3.h5", raw, labels, BEFORE))


def colours(pixels: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(pixels[y, x].tolist()) for y, x in [(5, 5), (5, 18), (15, 5), (15, 18)]]


def test_channels_are_red_green_and_blue_by_turns_and_one_alone_is_grey(crop: Crop) -> None:
    black, red, green, blue, white = (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
    assert colours(crop.show().pixels) == [red, green, blue, black]
    assert colours(crop.show(channels="0-3").pixels) == [red, green, blue, red]
    assert colours(crop.show(channels=1).pixels) == [black, white, black, black]


def test_labels_lie_where_they_are_in_raw_with_context(crop: Crop) -> None:
    plain, labelled = crop.show(z=1).pixels, crop.show(z=1, labels=True).pixels
    changed = np.argwhere((plain != labelled).any(axis=2))
    first, last = changed.min(axis=0).tolist(), changed.max(axis=0).tolist()
    assert (first, last) == ([BEFORE[1] + 2, BEFORE[2] + 5], [BEFORE[1] + 3, BEFORE[2] + 8])
    outside = crop.show(z=-2, labels=True)
    assert np.array_equal(outside.pixels, plain), "context in Z has no labels"


def test_what_the_crop_does_not_have_cannot_be_shown(crop: Crop) -> None:
    with pytest.raises(RequestError, match=r"along z the box \[9, 10\) is empty or leaves the crop's \[-2, 6\)"):
        crop.show(z=9)
    with pytest.raises(UnknownChannelError):
        crop.show(channels=9)


def test_a_picture_is_an_array_a_png_file_and_html(crop: Crop, tmp_path: Path) -> None:
    picture = crop.show(z=1, labels=True)
    saved = picture.save(tmp_path / "slice.png")
    assert np.array_equal(Image.open(saved), picture)
    html = picture._repr_html_()
    data = re.search(r"data:image/png;base64,([^\"]+)", html)
    assert data is not None
    assert np.array_equal(Image.open(io.BytesIO(b64decode(data[1]))), picture)
    assert not re.search("color|background", html), "the notebook's own colours, light or dark"
    assert "<figcaption>instance crop 3, z 1, channels 0, 1, 2, labels</figcaption>" in html
    assert repr(picture).startswith("<Picture of 24 × 20 pixels, instance crop 3, z 1")
    with pytest.raises(StorageError, match="cannot be written"):
        picture.save(tmp_path / "none" / "slice.png")


def test_a_catalog_shows_what_is_on_this_machine_and_passes_over_what_cannot_be_read(tmp_path: Path) -> None:
    file = write_crop(tmp_path, Split.INSTANCE, 3, crop_arrays(Split.INSTANCE, 3, None))
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(b"no HDF5")
    places = [file.path, str(damaged), "/on/the/service/crop_5.h5", None]
    assert [_shown(file, place).count("<img") for place in places] == [1, 0, 0, 0]


def _shown(file: CropFile, place: str | None) -> str:
    files = () if place is None else (file.model_copy(update={"path": place}),)
    return Catalog([CropInfo(split=Split.INSTANCE, crop=3, files=files)])._repr_html_()
