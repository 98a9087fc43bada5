"""Crops decoded once: into shared memory, into sidecars that are swept by rule, and only where they fit."""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from prismcache import NoSpaceError, StorageError
from prismcache._testing_files import crop_arrays, write_crop
from prismcache.crop.boxes import shifted
from prismcache.schema import Split
from prismcache.torch.crops import CropFacts
from prismcache.torch.decoded import (
    ArrayReader,
    Layout,
    SharedMemory,
    Sidecars,
    content_key,
    labels_dtype,
    slabs,
)
from prismcache.torch.hdf5_chunks import CropReader

CHANNELS = (0, 2)


@pytest.fixture
def facts(tmp_path: Path) -> CropFacts:
    arrays = crop_arrays(Split.INSTANCE, 0, None)
    return CropFacts.of(write_crop(tmp_path / "root", Split.INSTANCE, 0, arrays).path)


@pytest.fixture
def layout(facts: CropFacts) -> Layout:
    return facts.layout(CHANNELS, (0, 0, 0))


def opened(facts: CropFacts) -> CropReader:
    return CropReader(facts.path, ["labels", "raw/ch_00", "raw/ch_02"])


def refused() -> CropReader:
    raise AssertionError("decoded again")


def check(arrays: dict[str, np.ndarray]) -> None:
    whole = crop_arrays(Split.INSTANCE, 0, None)
    for channel in CHANNELS:
        assert np.array_equal(arrays[f"raw/ch_{channel:02d}"], whole.raw[channel])
    ids = np.unique(whole.labels)
    assert np.array_equal(ids[arrays["labels"]], whole.labels)


def test_labels_take_the_smallest_dtype(layout: Layout) -> None:
    assert [labels_dtype(n) for n in (0, 255, 256, 65_535, 65_536)] == ["uint8", "uint8", "uint16", "uint16", "uint32"]
    assert layout.dtypes["labels"] == "uint8"
    assert layout.size == 3 * 8 * 24 * 24


def test_slabs_are_the_box() -> None:
    seen = np.zeros((100, 3, 4), int)
    whole = (slice(-4, 96), slice(0, 3), slice(-1, 3))
    for box in slabs(whole, 1):
        seen[shifted(box, whole)] += 1
    assert (seen.min(), seen.max()) == (1, 1)
    assert len(list(slabs((slice(0, 200), slice(0, 500), slice(0, 500)), 4))) > 1


def test_shared_memory_holds_what_was_decoded(facts: CropFacts, layout: Layout) -> None:
    memory = SharedMemory(layout)
    memory.fill(opened(facts), layout)
    check(memory.arrays(layout))
    reader = ArrayReader(memory.arrays(layout), layout)
    out = np.empty((2, 24, 24), np.float32)
    reader.read("raw/ch_02", (slice(1, 3), slice(0, 24), slice(0, 24)), out)
    assert np.array_equal(out, crop_arrays(Split.INSTANCE, 0, None).raw[2, 1:3])
    reader.close()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="shared memory shows there")
def test_a_killed_process_leaves_no_shared_memory() -> None:
    program = "import os\nfrom prismcache.torch.decoded import *\n"
    program += "layout = Layout((4, 8, 8), {'labels': 'uint32'})\nheld = SharedMemory(layout)\n"
    program += "print(len(held.arrays(layout)), flush=True)\n"
    program += "os.kill(os.getpid(), 9)"
    before = {path.name for path in Path("/dev/shm").iterdir()}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("1", -9)
    left = {path.name for path in Path("/dev/shm").iterdir()} - before
    assert not [name for name in left if name.startswith("pym-")]


def test_a_sidecar_is_made_once_and_found_wherever_the_file_lies(
    facts: CropFacts, layout: Layout, tmp_path: Path
) -> None:
    sidecars = Sidecars(tmp_path / "decoded")
    assert sidecars.missing(facts.path, layout) == layout.sizes
    check(sidecars.arrays(facts.path, layout, lambda: opened(facts)))
    assert sidecars.missing(facts.path, layout) == {}
    check(sidecars.arrays(facts.path, layout, refused))
    (tmp_path / "root").rename(tmp_path / "moved")
    moved = tmp_path / "moved" / facts.path.relative_to(tmp_path / "root")
    check(sidecars.arrays(moved, layout, refused))
    assert not [path for path in (tmp_path / "decoded").rglob("*") if path.name.endswith(".tmp")]


def test_a_file_without_its_manifest_goes_by_its_stamp(facts: CropFacts, tmp_path: Path) -> None:
    by_digest = content_key(facts.path)
    os.utime(facts.path, ns=(1, 1))
    touched = content_key(facts.path)
    other = facts.path.rename(tmp_path / "crop_0.h5")
    assert len({by_digest, touched, content_key(other)}) == 3
    assert not by_digest.startswith("by-stamp")
    assert touched.startswith("by-stamp")


def test_two_processes_may_make_the_same_one(facts: CropFacts, layout: Layout, tmp_path: Path) -> None:
    folder = tmp_path / "decoded"
    context = get_context("fork")
    begin = context.Event()

    def make() -> None:
        begin.wait(60)
        check(Sidecars(folder).arrays(facts.path, layout, lambda: opened(facts)))

    makers = [context.Process(target=make) for _ in range(3)]
    for maker in makers:
        maker.start()
    begin.set()
    for maker in makers:
        maker.join()
    assert [maker.exitcode for maker in makers] == [0, 0, 0]
    assert len(list(folder.rglob("*"))) == 1 + 3
    check(Sidecars(folder).arrays(facts.path, layout, refused))


def test_a_maker_that_stops_leaves_nothing_that_counts(facts: CropFacts, layout: Layout, tmp_path: Path) -> None:
    class Stopped(CropReader):
        def read(self, *arguments) -> None:
            raise KeyboardInterrupt

    folder = tmp_path / "decoded"
    with pytest.raises(KeyboardInterrupt):
        Sidecars(folder).arrays(facts.path, layout, lambda: Stopped(facts.path, layout.dtypes))
    assert not [path for path in folder.rglob("*") if path.is_file()]
    old, young = (folder / "key" / f".labels.npy.{name}.tmp" for name in ("old", "young"))
    old.parent.mkdir()
    for temporary in (old, young):
        temporary.touch()
    os.utime(old, (1, 1))
    Sidecars(folder).make_room(1, [])
    assert (old.exists(), young.exists()) == (False, True)


def test_what_was_used_longest_ago_makes_room_but_never_ours(facts: CropFacts, layout: Layout, tmp_path: Path) -> None:
    folder = tmp_path / "decoded"
    sidecars = Sidecars(folder, limit=6 * 4736 + 100)
    sidecars.arrays(facts.path, layout, lambda: opened(facts))
    others = [folder / name / "labels.uint8.npy" for name in ("oldest", "older", "old")]
    for age, place in zip((1000, 2000, 3000), others, strict=True):
        place.parent.mkdir()
        place.write_bytes(bytes(4736))
        os.utime(place, (age, age))
    mapped = np.memmap(others[0], mode="r")
    sidecars.make_room(4736 + 50, [(facts.path, layout)])
    assert [place.exists() for place in others] == [False, True, True]
    assert not others[0].parent.exists()
    assert mapped.sum() == 0  # still readable by whoever had it open
    with pytest.raises(NoSpaceError, match=r'cache="mmap" needs 1\.0 GB more in .*decoded.* room for 4\.8 kB'):
        sidecars.make_room(1_000_000_000, [(facts.path, layout)])
    assert [place.exists() for place in others] == [False, True, True]  # not deleted for nothing
    assert sidecars.missing(facts.path, layout) == {}


def test_a_sidecar_of_another_shape_or_a_folder_that_is_a_file_is_an_error(
    facts: CropFacts, layout: Layout, tmp_path: Path
) -> None:
    sidecars = Sidecars(tmp_path / "decoded")
    sidecars.arrays(facts.path, layout, lambda: opened(facts))
    place = next((tmp_path / "decoded").rglob("ch_00*"))
    np.save(place, np.zeros((9, 24, 24), np.uint8))
    with pytest.raises(StorageError, match="not a decoded crop of shape"):
        sidecars.arrays(facts.path, layout, refused)
    place.write_bytes(bytes(9000))
    with pytest.raises(StorageError, match="cannot be mapped"):
        sidecars.arrays(facts.path, layout, refused)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        Sidecars(tmp_path / "file").arrays(facts.path, layout, lambda: opened(facts))
