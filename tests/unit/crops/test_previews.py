"""Previews: how large they get, how many are drawn at once, and what comes of a process that does not draw."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from prismcache.errors import CropCorruptError, CropNotCachedError, ServiceBusyError, UnknownChannelError, WorkerError
from prismcache.schema import Split
from prismcache_service.cache import CropCache, CropName
from prismcache_service.crops import previews
from prismcache_service.crops.previews import COMMAND, PreviewService
from prismcache_service.engine.local import preview
from tests.support.processes import eventually, watch
from tests.support.stored_crops import store_crop

pytestmark = pytest.mark.anyio

NAME = CropName(Split.INSTANCE, 0)
PRINTS = (sys.executable, "-c", "import os, sys; open(sys.argv[1] + '.drawn', 'a').write('x'); print(end='picture')")
HANGS = (
    sys.executable,
    "-c",
    "import os, sys, time; open(sys.argv[1] + '.pid', 'w').write(f'{os.getpid()}\\n'); time.sleep(600)",
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def cache(tmp_path: Path) -> CropCache:
    found = CropCache(tmp_path)
    store_crop(found, NAME)
    return found


def service(cache: CropCache, command: Sequence[str] = COMMAND) -> PreviewService:
    return PreviewService(cache, command)


def drawn(cache: CropCache) -> int:
    """How often `PRINTS` ran."""
    return len(Path(f"{cache.path(NAME)}.drawn").read_text())


def hanging(cache: CropCache) -> int:
    """Process id of `HANGS`; 0 until it runs."""
    path = Path(f"{cache.path(NAME)}.pid")
    text = path.read_text() if path.is_file() else ""
    return int(text) if text.endswith("\n") else 0


async def ask(found: PreviewService, crop: int = 0, channel: int = 0, known: str = "") -> previews.Preview:
    return await found.preview(Split.INSTANCE, crop, channel, lambda etag: etag == known)


@pytest.mark.parametrize(
    ("shape", "size"), [((3, 40, 64), (64, 40)), ((1, 1500, 700), (234, 500)), ((2, 1, 513), (257, 1))]
)
def test_a_picture_is_never_large(tmp_path: Path, shape: tuple[int, int, int], size: tuple[int, int]) -> None:
    path = tmp_path / "crop_0.h5"
    with h5py.File(path, "w") as file:
        file["raw/ch_00"] = np.zeros(shape, np.uint8)
        file["labels"] = np.full(shape, 2**32 - 1, np.uint32)

    assert Image.open(io.BytesIO(preview.draw(str(path), 0))).size == size
    with pytest.raises(UnknownChannelError):
        preview.draw(str(path), 1)


def test_grey_goes_from_black_to_white_and_labels_are_told_apart() -> None:
    raw = np.arange(100, 200, dtype=np.uint8).reshape(10, 10)
    labels = np.zeros((10, 10), np.uint32)
    labels[5, :3] = 1, 2, 3

    picture = preview.blend(raw, labels)

    assert (picture[0, 0].tolist(), picture[9, 9].tolist()) == ([0, 0, 0], [255, 255, 255])
    assert len({tuple(colour) for colour in picture[5, :3].tolist()}) == 3


def test_a_label_has_an_opaque_boundary_and_shows_raw_inside() -> None:
    labels = np.zeros((9, 9), np.uint32)
    labels[2:7, 2:7] = 2**32 - 1
    raw = np.zeros((9, 9), np.uint8)
    raw[4, 4] = 255

    picture = preview.blend(raw, labels)

    assert (picture[2, 2] == picture[6, 4]).all()
    assert picture[2, 2].max() > picture[3, 3].max() > 0
    assert (picture[4, 4] > picture[3, 3]).all()
    assert picture[0, 0].tolist() == [0, 0, 0]


async def test_a_file_that_is_no_hdf5_is_a_typed_error(cache: CropCache) -> None:
    with pytest.raises(CropCorruptError, match=r"crop_0\.h5 cannot be read as HDF5"):
        await ask(service(cache))


async def test_a_crash_is_a_typed_error(cache: CropCache) -> None:
    with pytest.raises(WorkerError, match="exit code 1: no memory"):
        await ask(service(cache, (sys.executable, "-c", "raise SystemExit('no memory')")))


async def test_many_who_want_the_same_have_it_drawn_once(cache: CropCache) -> None:
    found = await asyncio.gather(*(ask(service_) for service_ in [service(cache, PRINTS)] * 20))

    assert {each.png for each in found} == {b"picture"}
    assert drawn(cache) == 1


async def test_who_has_it_gets_nothing(cache: CropCache) -> None:
    etag = (await ask(service(cache, PRINTS))).etag

    assert (await ask(service(cache, HANGS), known=etag)).png is None


async def test_the_oldest_pictures_are_drawn_again(cache: CropCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(previews, "_KEPT", 2)
    found = service(cache, PRINTS)
    for channel in (0, 1, 0, 2, 0, 1):
        await ask(found, channel=channel)

    assert drawn(cache) == 4


async def test_a_queue_has_an_end_and_giving_up_ends_the_process(cache: CropCache) -> None:
    found = service(cache, HANGS)
    asking = [asyncio.create_task(ask(found)) for _ in range(previews._WAITING)]
    await asyncio.to_thread(eventually, lambda: hanging(cache) > 0, "drawing begins")
    process = watch(hanging(cache))

    with pytest.raises(ServiceBusyError):
        await ask(found)
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    assert not process.is_running


async def test_drawing_takes_no_longer_than_it_may(cache: CropCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(previews, "_DRAWING_S", 0.01)
    with pytest.raises(WorkerError, match="took longer"):
        await ask(service(cache, HANGS))


async def test_what_is_replaced_while_it_is_drawn_is_not_shown(cache: CropCache) -> None:
    damages = (sys.executable, "-c", "import sys; open(sys.argv[1], 'a').write('x'); print(end='picture')")
    with pytest.raises(CropNotCachedError):
        await ask(service(cache, damages))
