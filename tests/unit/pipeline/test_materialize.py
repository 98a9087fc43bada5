"""One crop from a source to a finished file: in whatever little memory, and never from two versions."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore

from prismcache.catalog import published
from prismcache.config import Settings
from prismcache.errors import (
    InvalidSourceError,
    MemoryLimitError,
    NoSpaceError,
    PrismError,
    SourceChangedError,
    SourceCorruptError,
    UnknownChannelError,
    UnknownCropError,
)
from prismcache.layout import Manifest, SourceList, SourceObject
from prismcache.schema import NO_CONTEXT, Context, Progress, Split
from prismcache_service.cache import CropName
from prismcache_service.pipeline import materialize
from prismcache_service.pipeline.materialize import Materializer, Order, first_error
from prismcache_service.pipeline.plan import plan
from prismcache_service.pipeline.plan.budget import Budget, plan_budget
from tests.support.codecs import ArrayLayout, Compressor
from tests.support.crops import BUCKET, PREFIX, CropSpec, crop_folder, write_crop
from tests.support.folder_source import FolderSource
from tests.support.oracle import assert_crop_file_equals_oracle, reference_shift


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of a worker process that has just started, not what other tests left in this one."""
    monkeypatch.setattr(materialize, "resident_bytes", lambda: 120_000_000)


SPEC = CropSpec(channels=3, raw_shape=(20, 48, 48), labels_shape=(12, 30, 32))
NAME = CropName(Split.INSTANCE, 0)


class ChangingSource(FolderSource):
    """Calls `change` just before the read with each of these numbers (from 0, metadata included)."""

    def __init__(self, root: Path, change: Callable[[], object], at: tuple[int, ...]) -> None:
        super().__init__(root)
        self._change, self._at, self._reads = change, at, 0

    async def read(self, folder: str, item: SourceObject) -> memoryview:
        if self._reads in self._at:
            self._change()
        self._reads += 1
        return await super().read(folder, item)


@contextmanager
def materializer(**changes: Any) -> Iterator[Materializer]:
    found = Settings.load({}, decode_threads=2, **changes)
    with ThreadPoolExecutor(found.decode_threads) as executor:
        made = Materializer(found, executor)
        try:
            yield made
        finally:
            made.close()


def make(
    bucket_dir: Path,
    target: Path,
    name: CropName = NAME,
    *,
    source: FolderSource | None = None,
    report: Callable[[Progress], None] = lambda _: None,
    strict: bool = False,
    **changes: Any,
) -> tuple[Manifest, SourceList]:
    order = Order(name, published().entry(name.split), source or FolderSource(bucket_dir / BUCKET / PREFIX), target)

    async def main() -> tuple[Manifest, SourceList]:
        async with asyncio.timeout(30):  # a deadlock would last for ever
            return await maker.make(order, report, strict=strict)

    with materializer(**changes) as maker:
        return asyncio.run(main())


@pytest.fixture
def bucket_dir(tmp_path: Path) -> Path:
    """A bucket with one crop, for the test alone."""
    write_crop(tmp_path / "s3", SPEC)
    return tmp_path / "s3"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / ".crop_0.h5.tmp"


def test_a_made_crop_equals_the_oracle_and_says_what_it_is(bucket_dir: Path, target: Path) -> None:
    seen: list[Progress] = []
    made, sources = make(bucket_dir, target, report=seen.append)
    assert_crop_file_equals_oracle(target, crop_folder(bucket_dir, SPEC))
    assert made.sha256 == hashlib.sha256(target.read_bytes()).hexdigest()
    assert (made.size, made.channels, made.complete) == (target.stat().st_size, (0, 1, 2), True)
    assert [item.key for item in sources.objects] == sorted(item.key for item in sources.objects)
    with h5py.File(target) as file:
        assert file.attrs["source_fingerprint"] == made.source_fingerprint
        assert file.attrs["source"] == made.source
    assert (seen[0].objects_done, seen[0].bytes_done) == (0, 0)
    assert (seen[-1].objects_done, seen[-1].bytes_done) == (seen[-1].objects_total, seen[-1].bytes_total)
    assert len({(each.objects_total, each.bytes_total) for each in seen}) == 1
    assert [each.objects_done for each in seen] == list(range(len(seen)))
    assert {path.name for path in target.parent.iterdir()} == {"s3", target.name}


def test_two_runs_give_equal_bytes_whatever_memory_and_threads_they_have(bucket_dir: Path, tmp_path: Path) -> None:
    digests = {
        make(bucket_dir, tmp_path / f"{number}.h5", **changes)[0].sha256
        for number, changes in enumerate([{}, {"s3_concurrency": 1}, {"memory_limit": "2GB", "s3_concurrency": 64}])
    }
    assert len(digests) == 1


@pytest.mark.parametrize("channels", [None, (1,)])
@pytest.mark.parametrize("context", ["all", (0, 0, 5), (3, 4, 2), (99, 99, 99), (99, 0, 99)])
def test_raw_reaches_beyond_the_labels_as_far_as_asked_and_as_the_source_has(
    bucket_dir: Path, target: Path, context: Context, channels: tuple[int, ...] | None
) -> None:
    folder = crop_folder(bucket_dir, SPEC)
    made, _ = make(bucket_dir, target, CropName(Split.INSTANCE, 0, channels, context))
    raw = zarr.open_array(LocalStore(folder / "raw", read_only=True), mode="r")
    first = np.array(reference_shift(folder))
    reach = np.array(raw.shape[1:]) if context == "all" else np.array(context)
    start = np.maximum(first - reach, 0)
    stop = np.minimum(first + SPEC.labels_shape + reach, raw.shape[1:])
    with h5py.File(target) as file:
        labels = file["labels"]
        assert labels.shape == SPEC.labels_shape
        for channel in made.channels:
            found = file[f"raw/ch_{channel:02d}"]
            expected = raw[(channel, *map(slice, start, stop))]
            np.testing.assert_array_equal(found[()], expected)
            before = (labels.attrs["offset"] - found.attrs["offset"]) // labels.attrs["resolution"]
            np.testing.assert_array_equal(before, first - start)
            assert list(found.attrs["voxel_size"]) == list(labels.attrs["voxel_size"])


def test_no_context_gives_the_bytes_of_a_plain_crop_and_so_does_all_where_raw_ends_with_the_labels(
    tmp_path: Path,
) -> None:
    spec = dataclasses.replace(SPEC, raw_shape=SPEC.labels_shape, labels_offset=SPEC.raw_offset)
    write_crop(tmp_path, spec)
    contexts: list[Context] = [NO_CONTEXT, "all", (1, 2, 3)]
    made = [
        make(tmp_path, tmp_path / f"{n}.h5", dataclasses.replace(NAME, context=context))
        for n, context in enumerate(contexts)
    ]
    assert len({each.sha256 for each, _ in made}) == 1


def test_context_fetches_only_the_chunks_that_meet_the_wider_box(bucket_dir: Path, target: Path) -> None:
    fetched: list[str] = []

    class Counted(FolderSource):
        async def read(self, folder: str, item: SourceObject) -> memoryview:
            fetched.append(item.key)
            return await super().read(folder, item)

    folder = crop_folder(bucket_dir, SPEC)
    make(bucket_dir, target, dataclasses.replace(NAME, context=(2, 1, 1)), source=Counted(bucket_dir / BUCKET / PREFIX))
    raw = zarr.open_array(LocalStore(folder / "raw", read_only=True), mode="r")
    first = reference_shift(folder)
    ranges = [range(-(-SPEC.channels // raw.chunks[0]))]
    for a, n, by, end, size in zip(first, SPEC.labels_shape, (2, 1, 1), raw.shape[1:], raw.chunks[1:], strict=True):
        ranges.append(range(max(0, a - by) // size, -(-min(end, a + n + by) // size)))
    expected = {f"raw/{'.'.join(map(str, index))}" for index in itertools.product(*ranges)}
    assert {key for key in fetched if key.startswith("raw/") and not key.endswith(("array", "attrs"))} == expected
    assert len(fetched) == len(set(fetched))


@dataclasses.dataclass(frozen=True)
class Tight:
    """A crop, and the least memory that it can be made in."""

    spec: CropSpec
    channels: tuple[int, ...] | None
    window: int
    spare_slots: int


@st.composite
def tight_crops(draw: st.DrawFn) -> Tight:
    channels = draw(st.integers(1, 3))
    labels = draw(st.tuples(st.integers(1, 40), st.integers(1, 140), st.integers(1, 20)))
    shift = draw(st.tuples(st.integers(0, 6), st.integers(0, 20), st.integers(0, 6)))
    raw = tuple(a + n + b for a, n, b in zip(shift, labels, draw(st.tuples(*(st.integers(0, 5),) * 3)), strict=True))
    raw_chunks = (draw(st.integers(1, channels)), *(draw(st.integers(max(1, n // 3), n)) for n in raw))
    labels_chunks = tuple(draw(st.integers(max(1, n // 3), n)) for n in labels)
    spec = CropSpec(
        channels=channels,
        raw_shape=(raw[0], raw[1], raw[2]),
        labels_shape=labels,
        labels_offset=tuple(o + s * r for o, s, r in zip((8000, 33600, 16800), shift, (400, 168, 168), strict=True)),
        raw=ArrayLayout("|u1", chunks=raw_chunks, attributes=("offset", "resolution")),
        labels=ArrayLayout("<u8", chunks=labels_chunks),
    ).with_layout(compressor=Compressor("zstd", 1))
    wanted = draw(st.none() | st.sets(st.integers(0, channels - 1), min_size=1).map(lambda found: tuple(sorted(found))))
    return Tight(spec, wanted, draw(st.sampled_from([1, 100_000, 64 << 20])), draw(st.integers(0, 2)))


@given(tight_crops())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_least_memory_is_enough_for_any_crop_and_nothing_waits_for_ever(tight: Tight) -> None:
    def least(crop_plan: plan.CropPlan, **arguments: Any) -> Budget:
        found = plan_budget(crop_plan, **(arguments | {"limit": 2**40}))
        needed = max(min(a.open_blocks + 1, len(a.blocks)) for a in (crop_plan.labels, crop_plan.raw))
        return dataclasses.replace(found, blocks=needed, slots=2 + tight.spare_slots)

    name = CropName(Split.INSTANCE, 0, tight.channels)
    with (
        TemporaryDirectory() as folder,
        patch.object(plan, "_WINDOW_BYTES", tight.window),
        patch.object(materialize, "plan_budget", least),
    ):
        write_crop(Path(folder), tight.spec)
        target = Path(folder, "crop_0.h5")
        make(Path(folder), target, name)
        assert_crop_file_equals_oracle(target, crop_folder(Path(folder), tight.spec), tight.channels)


def test_a_crop_that_changes_once_while_it_is_read_is_made_from_the_new_version_alone(
    bucket_dir: Path, target: Path
) -> None:
    folder = crop_folder(bucket_dir, SPEC)
    other = dataclasses.replace(SPEC, seed=1)
    source = ChangingSource(bucket_dir / BUCKET / PREFIX, lambda: write_crop(bucket_dir, other), at=(9,))
    _, sources = make(bucket_dir, target, source=source)
    assert_crop_file_equals_oracle(target, folder)
    listed = asyncio.run(source.list_objects("instance/crop_0.zarr"))
    assert {item.key: item for item in sources.objects} == listed


def test_a_crop_that_changes_twice_is_refused(bucket_dir: Path, target: Path) -> None:
    seeds = iter(range(1, 9))
    source = ChangingSource(
        bucket_dir / BUCKET / PREFIX,
        lambda: write_crop(bucket_dir, dataclasses.replace(SPEC, seed=next(seeds))),
        at=(6, 14, 22, 30, 38),
    )
    with pytest.raises(SourceChangedError, match=r"crop_0\.zarr changed while it was fetched, twice"):
        make(bucket_dir, target, source=source)


def test_damage_that_is_no_change_is_corruption_at_once(bucket_dir: Path, target: Path) -> None:
    reads: list[str] = []

    class Damaged(FolderSource):
        async def read(self, folder: str, item: SourceObject) -> memoryview:
            reads.append(item.key)
            if item.key == "raw/0.0.0.0":
                raise SourceCorruptError(f"object {item.key!r} has another MD5")
            return await super().read(folder, item)

    with pytest.raises(SourceCorruptError, match=r"raw/0\.0\.0\.0"):
        make(bucket_dir, target, source=Damaged(bucket_dir / BUCKET / PREFIX))
    assert reads.count("raw/0.0.0.0") == 1


@pytest.mark.parametrize("body", [b"", b"\0" * 16, b"no blosc at all, but long enough for a header"])
def test_an_object_that_does_not_decode_is_corruption_by_its_key(bucket_dir: Path, target: Path, body: bytes) -> None:
    (crop_folder(bucket_dir, SPEC) / "labels/1.0.0").write_bytes(body)
    with pytest.raises(SourceCorruptError, match=r"instance/crop_0\.zarr: object 'labels/1\.0\.0'"):
        make(bucket_dir, target)


@pytest.mark.parametrize(
    ("name", "error", "named"),
    [
        (CropName(Split.INSTANCE, 3), UnknownCropError, r"crop 3 of split 'instance' is not in .* \(it has 0\)"),
        (CropName(Split.SEMANTIC, 0), UnknownCropError, "it has no crop of this split"),
        (CropName(Split.INSTANCE, 0, (1, 3)), UnknownChannelError, "channels 0-2, not 3"),
    ],
)
def test_what_is_not_published_is_named_with_what_is(
    bucket_dir: Path, target: Path, name: CropName, error: type[PrismError], named: str
) -> None:
    with pytest.raises(error, match=named):
        make(bucket_dir, target, name)
    assert not target.exists()


def test_a_crop_without_an_array_is_no_crop(bucket_dir: Path, target: Path) -> None:
    (crop_folder(bucket_dir, SPEC) / "labels/.zarray").unlink()
    with pytest.raises(InvalidSourceError, match="array 'labels' has no metadata"):
        make(bucket_dir, target)


def test_too_little_memory_is_said_before_anything_is_fetched(bucket_dir: Path, target: Path) -> None:
    with patch.object(materialize, "resident_bytes", lambda: 500_000_000), pytest.raises(MemoryLimitError):
        make(bucket_dir, target)
    assert not target.exists()


def test_memory_is_given_back_beside_the_listing_and_before_the_next_crop_takes_any(
    bucket_dir: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, given_back = threading.Event(), threading.Event()

    class Listing(FolderSource):
        async def list_objects(self, folder: str) -> dict[str, SourceObject]:
            listed.set()
            return await super().list_objects(folder)

    def give_back() -> None:
        if listed.wait(30):
            given_back.set()

    def used() -> int:
        assert given_back.is_set()
        return 1

    monkeypatch.setattr(materialize, "give_memory_back", give_back)
    monkeypatch.setattr(materialize, "resident_bytes", used)

    order = Order(NAME, published()["instance"], Listing(bucket_dir / BUCKET / PREFIX), target)

    async def main() -> None:
        maker.tidy()
        await maker.make(order, lambda _: None)

    with materializer() as maker:
        asyncio.run(main())
    assert given_back.is_set()


def test_too_little_space_is_said_before_anything_is_fetched(bucket_dir: Path, target: Path) -> None:
    class Stats:
        f_bavail, f_frsize = 3, 1_000_000

    with (
        patch.object(materialize.os, "statvfs", lambda _: Stats),
        pytest.raises(NoSpaceError, match=r"has 3 MB free, the crop may need \d+ MB"),
    ):
        make(bucket_dir, target)
    assert not target.exists()


def test_the_error_of_a_group_is_the_one_that_came_first() -> None:
    inner = BaseExceptionGroup("b", [NoSpaceError("x"), ValueError("y")])
    found = first_error(BaseExceptionGroup("a", [inner, KeyError("z")]))
    assert isinstance(found, NoSpaceError)
