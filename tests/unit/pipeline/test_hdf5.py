"""The file that HDF5 writes: byte for byte the same, as the contract says, and never a crash on a full disk."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from prismcache.disk import sha256_of, storage_error
from prismcache.errors import NoSpaceError, StorageError, StorageUnwritableError
from prismcache_service.pipeline.write.hdf5 import CropWriter, Sink, check_file, start_writeback
from tests.support import crop_files
from tests.support.crop_files import ATTRIBUTES, failing_operation, file_plan, noise, write_crop_file

PLAN = file_plan()
RAW, LABELS = noise(PLAN)
SHAPES = dict.fromkeys(("raw/ch_00", "raw/ch_01", "labels"), LABELS.shape)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "crop_7.h5"


def test_what_was_written_reads_back_with_nothing_but_gzip(path: Path) -> None:
    write_crop_file(path, PLAN, RAW, LABELS)
    with h5py.File(path, "r", locking=False) as file:
        assert sorted(file["raw"]) == ["ch_00", "ch_01"]
        for channel in (0, 1):
            np.testing.assert_array_equal(file[f"raw/ch_{channel:02d}"][()], RAW[channel])
        np.testing.assert_array_equal(file["labels"][()], LABELS)
        np.testing.assert_array_equal(file["labels_ids"][()], np.arange(5, dtype=np.uint64) * 2**60)
        assert dict(file.attrs) == ATTRIBUTES
        for dataset in (file["labels"], file["raw/ch_01"]):
            assert dataset.compression == "gzip"
            assert dataset.chunks == PLAN.raw.chunk == (16, 64, 64)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems begin when it suits them")
def test_what_goes_to_the_disk_early_stays_in_memory_for_its_hash(path: Path) -> None:
    with path.open("w+b", buffering=0) as file:
        file.write(b"voxels" * 100_000)
        os.fsync(file.fileno())
        start_writeback(file.fileno(), 0)
        try:
            # Fails, rather than ask the disk, for what is not in memory.
            found = os.preadv(file.fileno(), [bytearray(600_000)], 0, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            pytest.skip("this file system cannot say what is in memory")
    assert found == 600_000


def test_every_volume_says_where_it_lies_as_gunpowder_and_funlib_read_it(path: Path) -> None:
    write_crop_file(path, PLAN, RAW, LABELS)
    with h5py.File(path, "r", locking=False) as file:
        for name in ("labels", "raw/ch_00", "raw/ch_01"):
            attributes = file[name].attrs
            assert tuple(attributes["offset"]) == PLAN.alignment.offset
            assert tuple(attributes["resolution"]) == tuple(attributes["voxel_size"]) == (400, 168, 168)
            assert attributes["offset"].dtype == attributes["resolution"].dtype == np.int64
            assert list(attributes["axis_names"]) == ["z", "y", "x"]
            assert list(attributes["units"]) == ["nm", "nm", "nm"]


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    digests = set()
    for name in ("a.h5", "b.h5"):
        write_crop_file(tmp_path / name, PLAN, RAW, LABELS)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1
    write_crop_file(tmp_path / "c.h5", PLAN, RAW, LABELS ^ np.uint32(1))
    assert hashlib.sha256((tmp_path / "c.h5").read_bytes()).hexdigest() not in digests


def test_chunks_reach_the_disk_in_few_large_writes(path: Path, monkeypatch) -> None:
    sizes = []
    write = Sink.write
    monkeypatch.setattr(Sink, "write", lambda sink, data: sizes.append(len(data)) or write(sink, data))
    write_crop_file(path, PLAN, RAW, LABELS)
    with h5py.File(path, "r", locking=False) as file:
        chunks = sum(file[name].id.get_num_chunks() for name in ("labels", "raw/ch_00", "raw/ch_01"))
    assert sum(size > 10_000 for size in sizes) < chunks / 4


def test_noise_takes_less_than_the_bound(path: Path) -> None:
    write_crop_file(path, PLAN, RAW, LABELS)
    assert RAW.nbytes + LABELS.nbytes < path.stat().st_size < PLAN.file_bytes_bound


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_the_digest_is_that_of_the_whole_file_wherever_its_descriptor_stands(path: Path, size: int) -> None:
    content = np.random.default_rng(size).bytes(size)
    path.write_bytes(content)
    with path.open("rb") as file:
        file.seek(size // 2)
        assert sha256_of(file.fileno()) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("mode", [0o664, 0o600])
def test_the_file_has_the_permissions_asked_for(path: Path, mode: int) -> None:
    before = os.umask(0)
    try:
        write_crop_file(path, PLAN, RAW, LABELS, mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_an_existing_file_is_never_written_to(path: Path) -> None:
    path.write_bytes(b"somebody's")
    with pytest.raises(StorageError, match="File exists"):
        write_crop_file(path, PLAN, RAW, LABELS)
    assert path.read_bytes() == b"somebody's"


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageUnwritableError, match="no-such-folder"):
        write_crop_file(tmp_path / "no-such-folder" / "crop_7.h5", PLAN, RAW, LABELS)


def test_a_chunk_that_was_not_written_is_noticed(path: Path) -> None:
    with CropWriter(path, PLAN, ATTRIBUTES, 0o644) as writer:
        writer.close_file()
        writer.sync()
    with pytest.raises(StorageError, match="raw/ch_00 reads back incomplete"):
        check_file(path, SHAPES)


@pytest.mark.parametrize("damage", ["truncated", "missing", "no HDF5"])
def test_a_finished_file_that_does_not_open_is_noticed(path: Path, damage: str) -> None:
    write_crop_file(path, PLAN, RAW, LABELS)
    if damage == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"no HDF5" * 100)
    with pytest.raises(StorageError, match="cannot be read"):
        check_file(path, SHAPES)


def test_a_file_without_a_dataset_is_noticed(path: Path) -> None:
    write_crop_file(path, PLAN, RAW, LABELS)
    with h5py.File(path, "r+") as file:
        del file["raw/ch_01"]
    with pytest.raises(StorageError, match="cannot be read"):
        check_file(path, SHAPES)


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """What `tests.support.crop_files` saw in a process of its own, which must not crash."""
    folder = tmp_path_factory.mktemp("disk")
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.support.crop_files", str(folder)]
    done = subprocess.run(
        command, cwd=Path(crop_files.__file__).parents[2], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def test_whichever_operation_finds_the_disk_full_it_ends_as_no_space_and_never_as_a_crash(full_disk) -> None:
    count = int(full_disk[0][1])
    assert count > 10
    found = {int(line[1]): line[2] for line in full_disk if line[0] == "operation"}
    assert found == dict.fromkeys(range(1, count + 1), "no_space") | {count + 1: "made"}


def test_at_whatever_size_the_disk_is_full_it_ends_as_no_space_and_never_as_a_crash(full_disk) -> None:
    size = int(full_disk[0][3])
    found = {int(line[1]): line[2] for line in full_disk if line[0] == "limit"}
    assert len(found) > 100
    assert {limit for limit, outcome in found.items() if outcome != "no_space"} == {size}
    assert found[size] == "made"


def test_the_first_error_of_a_sink_is_kept_and_later_writes_are_dropped(path: Path) -> None:
    sink = Sink(path, 0o644)
    sink.write(b"kept")
    with failing_operation(1):
        assert sink.write(b"lost") == 4
    assert sink.write(b"dropped") == 7
    assert sink.tell() == 15
    assert path.read_bytes() == b"kept"
    for look in (sink.raise_error, sink.sync):
        with pytest.raises(NoSpaceError, match=r"crop_7\.h5: No space left on device"):
            look()
    sink.close()


def test_what_a_sink_dropped_reads_as_zeros(path: Path) -> None:
    sink = Sink(path, 0o644)
    sink.write(b"abc")
    with failing_operation(1):
        sink.write(b"defgh")
    sink.seek(0)
    buffer = bytearray(b"x" * 8)
    assert sink.readinto(buffer) == 8
    assert buffer == b"abc\0\0\0\0\0"
    sink.close()
    sink.close()


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, NoSpaceError),
        (errno.EDQUOT, NoSpaceError),
        (errno.EFBIG, NoSpaceError),
        (errno.EACCES, StorageUnwritableError),
        (errno.EROFS, StorageUnwritableError),
        (errno.EPERM, StorageUnwritableError),
        (errno.ENOTDIR, StorageUnwritableError),
        (errno.EIO, StorageError),
        (errno.ESTALE, StorageError),
    ],
)
def test_the_systems_errors_become_ours_with_path_and_reason(number: int, kind: type[StorageError]) -> None:
    found = storage_error(OSError(number, "whatever"), Path("/lab/crop_7.h5"))
    assert type(found) is kind
    assert str(found) == f"/lab/crop_7.h5: {os.strerror(number)}"


def test_an_error_without_a_number_keeps_its_words() -> None:
    assert str(storage_error(OSError("h5py says no"), "/lab/x")) == "/lab/x: h5py says no"
