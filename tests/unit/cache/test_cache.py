"""The cache folder: a path that it names is a complete, right file, whatever happened to the folder before."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock
from unittest.mock import patch

import pytest

from prismcache.disk import stamp_of
from prismcache.errors import NoSpaceError, StorageError, StorageUnwritableError
from prismcache.layout import (
    FORMAT_VERSION,
    HDF5_SIGNATURE,
    STATE_FOLDER,
    SourceList,
    SourceObject,
    manifest_path,
    sources_path,
)
from prismcache.schema import CropFile, Split
from prismcache_service.cache import CropCache, CropName, Found
from prismcache_service.cache import cache as caching
from prismcache_service.cache import places as comparing
from tests.support.cache_root import files_below, quarantined, unfinished
from tests.support.stored_crops import manifest_of

WHOLE = CropName(Split.INSTANCE, 3)
SUBSET = CropName(Split.INSTANCE, 3, (0, 1))
CONTENT = HDF5_SIGNATURE + bytes(range(256)) * 20
OTHER = HDF5_SIGNATURE + b"another version" * 300


@pytest.fixture
def cache(tmp_path: Path) -> CropCache:
    return CropCache(tmp_path / "root")


SOURCES = SourceList(source_fingerprint="f" * 64, objects=(SourceObject(key="raw/0.0.0.0", size=1, etag="e"),))


def publish(
    cache: CropCache,
    name: CropName = WHOLE,
    content: bytes = CONTENT,
    token: str = "t0",  # noqa: S107 - marks a temporary file
    **changes: Any,
) -> CropFile:
    cache.prepare(name.split)
    temporary = cache.temporary(name, token)
    temporary.write_bytes(content)
    manifest = manifest_of(name, content, channels=name.channels or (0, 1, 2, 3), **changes)
    return cache.publish(name, temporary, manifest, SOURCES, token)


def find(cache: CropCache, name: CropName = WHOLE) -> CropFile | None:
    while (found := cache.look(name)).doubtful:
        cache.verify(found.doubtful[0])
    return found.file


def manifest_file(cache: CropCache, name: CropName = WHOLE) -> Path:
    return cache.root / manifest_path(name.split, name.crop, name.channels)


def assert_absent_or_right(cache: CropCache, name: CropName = WHOLE, *, among: tuple[bytes, ...] = (CONTENT,)) -> None:
    """What every promise comes down to."""
    found = find(cache, name)
    if found is not None:
        content = Path(found.path).read_bytes()
        assert content in among
        assert (found.size, found.sha256) == (len(content), hashlib.sha256(content).hexdigest())


# Publishing and finding


def test_nothing_is_created_before_something_is_published(cache: CropCache) -> None:
    assert find(cache) is None
    assert list(cache.names()) == list(cache.strays()) == []
    assert cache.sweep() == []
    assert not cache.root.exists()


def test_a_published_file_is_found_where_the_contract_says(cache: CropCache) -> None:
    published = publish(cache)
    assert published.path == str(cache.root / "instance/crop_3.h5")
    assert Path(published.path).read_bytes() == CONTENT
    assert find(cache) == published
    assert files_below(cache.root) == [
        f"{STATE_FOLDER}/manifests/instance/crop_3.json",
        f"{STATE_FOLDER}/manifests/instance/crop_3.sources.json",
        "instance/crop_3.h5",
    ]
    listed = SourceList.model_validate_json((cache.root / sources_path(Split.INSTANCE, 3)).read_bytes())
    assert listed == SOURCES


def test_an_untouched_file_is_found_without_being_read(cache: CropCache) -> None:
    publish(cache)
    with patch.object(comparing, "sha256_of", side_effect=AssertionError("read again")):
        assert find(cache) is not None


def test_a_touched_file_is_read_once_and_then_known_again(cache: CropCache) -> None:
    path = Path(publish(cache).path)
    os.utime(path, (1, 1))
    assert find(cache) is not None
    with patch.object(comparing, "sha256_of", side_effect=AssertionError("read again")):
        assert find(cache) is not None


def test_a_touched_file_is_found_by_one_who_may_not_write_the_manifest(cache: CropCache) -> None:
    path = Path(publish(cache).path)
    os.utime(path, (1, 1))
    before = manifest_file(cache).read_bytes()
    with patch.object(caching, "write_atomically", side_effect=PermissionError(errno.EACCES, "no")):
        assert find(cache) is not None
    assert manifest_file(cache).read_bytes() == before


def test_publishing_again_replaces_the_file_and_the_manifest(cache: CropCache) -> None:
    publish(cache)
    published = publish(cache, content=OTHER, token="t1")
    assert find(cache) == published
    assert Path(published.path).read_bytes() == OTHER
    assert quarantined(cache.root) == []
    assert unfinished(cache.root) == []


@pytest.mark.parametrize("split", [Split.SEMANTIC, Split.INSTANCE])
@pytest.mark.parametrize("crop", [3, 30, 0])
def test_one_crop_is_never_taken_for_another(cache: CropCache, split: Split, crop: int) -> None:
    publish(cache)
    found = find(cache, CropName(split, crop, None))
    assert (found is not None) == ((split, crop) == (Split.INSTANCE, 3))


# Subsets of channels


def test_a_request_for_channels_takes_the_fuller_file(cache: CropCache) -> None:
    whole = publish(cache)
    assert find(cache, CropName(Split.INSTANCE, 3, (2,))) == whole
    assert find(cache, CropName(Split.INSTANCE, 3, (3, 0))) == whole
    assert find(cache, CropName(Split.INSTANCE, 3, (0, 4))) is None


def test_a_request_for_channels_takes_any_file_that_has_them(cache: CropCache) -> None:
    subset = publish(cache, SUBSET)
    assert subset.path.endswith("instance/crop_3.ch00-01.h5")
    assert find(cache, CropName(Split.INSTANCE, 3, (1,))) == subset
    assert find(cache, CropName(Split.INSTANCE, 3, (1, 0, 1))) == subset
    assert find(cache, CropName(Split.INSTANCE, 3, (1, 2))) is None
    assert find(cache) is None


def test_a_request_for_everything_never_takes_a_subset_even_one_of_all_channels_by_name(cache: CropCache) -> None:
    publish(cache, CropName(Split.INSTANCE, 3, (0, 1, 2, 3)))
    assert find(cache) is None


def test_the_exact_subset_serves_where_the_fuller_file_is_wrong(cache: CropCache) -> None:
    whole, subset = publish(cache), publish(cache, SUBSET, OTHER)
    assert find(cache, CropName(Split.INSTANCE, 3, (0, 1))) == whole
    os.truncate(whole.path, 100)
    assert find(cache, CropName(Split.INSTANCE, 3, (0, 1))) == subset


def test_names_are_ordered_by_split_crop_and_channels(cache: CropCache) -> None:
    names = [
        WHOLE, SUBSET, CropName(Split.INSTANCE, 10), CropName(Split.INSTANCE, 3, (5,)), CropName(Split.SEMANTIC, 0),
    ]  # fmt: skip
    for name in names:
        publish(cache, name)
    ordered = [WHOLE, SUBSET, names[3], names[2], names[4]]
    assert list(cache.names()) == ordered
    assert list(cache.names(Split.SEMANTIC)) == [names[4]]
    assert list(cache.names(Split.INSTANCE, 3)) == ordered[:3]
    assert list(cache.names(crop=10)) == [names[2]]


# Damage


def _flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 1]))


def _flip_and_restore_times(path: Path) -> None:
    before = path.stat()
    _flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _zero_tail(path: Path) -> None:
    size = path.stat().st_size
    os.truncate(path, 512)
    os.truncate(path, size)


def _symlink(path: Path) -> None:
    path.rename(path.with_name("elsewhere.h5"))
    path.symlink_to("elsewhere.h5")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").write_text("x")


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: os.truncate(path, 0),
    "truncated": lambda path: os.truncate(path, 2000),
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "zeroed": _zero,
    "tail zeroed": _zero_tail,
    "flipped": _flip,
    "flipped, times restored": _flip_and_restore_times,
    "another file": lambda path: path.write_bytes(OTHER[: len(CONTENT)].ljust(len(CONTENT))),
    "symlink to the right file": _symlink,
    "dangling symlink": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "folder": _folder,
    "pipe": _fifo,
}
any_damage = pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)


@any_damage
def test_a_damaged_file_is_never_found_and_verify_gives_the_reason(
    cache: CropCache, damage: Callable[[Path], object]
) -> None:
    path = Path(publish(cache).path)
    assert cache.verify(WHOLE) == ""
    damage(path)
    assert re.search(r"crop_3\.h5 (cannot be opened|is no|has|does not)", cache.verify(WHOLE))
    assert find(cache) is None
    for name in cache.look(WHOLE).wrong:
        cache.set_aside(name)
    assert not os.path.lexists(path)
    published = publish(cache, token="t1")
    assert find(cache) == published
    assert path.read_bytes() == CONTENT
    assert not path.is_symlink()


@any_damage
def test_publishing_over_damage_gives_a_right_file(cache: CropCache, damage: Callable[[Path], object]) -> None:
    path = Path(publish(cache).path)
    damage(path)
    published = publish(cache, content=OTHER, token="t1")
    assert find(cache) == published
    assert path.read_bytes() == OTHER


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EMFILE, errno.EACCES])
@pytest.mark.parametrize("operation", ["open", "read", "fstat"])
def test_an_error_that_passes_neither_hides_a_good_file_nor_makes_it_wrong(
    cache: CropCache, operation: str, number: int
) -> None:
    published = publish(cache)
    error = OSError(number, os.strerror(number))
    real = getattr(os, operation)
    with patch.object(os, operation, side_effect=[error, error, *[mock.DEFAULT] * 9], wraps=real):
        assert cache.look(WHOLE) == Found(published)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EMFILE, errno.EACCES])
def test_an_error_that_stays_is_a_storage_error_and_says_nothing_about_the_content(
    cache: CropCache, number: int
) -> None:
    published = publish(cache)
    for where, operation in ((os, "read"), (Path, "read_bytes")):
        with (
            patch.object(where, operation, side_effect=OSError(number, os.strerror(number))),
            pytest.raises(StorageError, match=rf"crop_3\.(h5|json): {os.strerror(number)}") as caught,
        ):
            cache.look(WHOLE)
        assert ("ulimit -n" in caught.value.remedy) == (number == errno.EMFILE)
    assert find(cache) == published


def test_checking_leaves_no_file_open(cache: CropCache) -> None:
    path = Path(publish(cache).path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for damage in (lambda _: None, lambda p: os.utime(p, (1, 1)), _flip, _folder):
        damage(path)
        find(cache)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("writable", [True, False])
def test_what_verify_found_wrong_is_never_a_hit_again_though_every_stamp_agrees(
    cache: CropCache, *, writable: bool
) -> None:
    path = Path(publish(cache).path)
    _flip(path)
    manifest = cache.manifest(WHOLE)
    assert manifest is not None
    stamped = manifest.model_copy(update={"stamp": stamp_of(path.stat())})
    manifest_file(cache).write_text(stamped.model_dump_json())
    assert cache.look(WHOLE).file is not None
    refused = contextlib.nullcontext() if writable else patch.object(caching, "write_atomically", side_effect=OSError)
    with refused:
        assert "has SHA-256" in cache.verify(WHOLE)
    assert list(cache.look(WHOLE).wrong) == [WHOLE]
    if writable:
        assert find(CropCache(cache.root)) is None


def test_on_a_read_only_root_the_result_of_reading_again_is_kept_in_the_users_own_folder(
    cache: CropCache, tmp_path: Path
) -> None:
    published = publish(cache)
    os.utime(published.path, (1, 1))
    readers = [CropCache(cache.root, readings=tmp_path / "mine") for _ in range(2)]
    with patch.object(caching, "write_atomically", side_effect=PermissionError(errno.EACCES, "no")):
        assert readers[0].look(WHOLE).doubtful == (WHOLE,)
        assert readers[0].verify(WHOLE) == ""
    assert readers[1].look(WHOLE) == Found(published)


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(bytes(100)),
        lambda path: path.write_text("{}"),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "size": "much"})),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["missing", "empty", "cut", "zeroed", "{}", "[]", "wrong type", "folder"],
)
def test_a_file_without_a_readable_manifest_is_a_stray_and_not_found(cache: CropCache, damage) -> None:
    publish(cache)
    damage(manifest_file(cache))
    assert find(cache) is None
    assert list(cache.strays()) == [WHOLE]
    assert list(cache.strays(Split.SEMANTIC)) == []


@pytest.mark.parametrize("more", [{}, {"channels": "all"}], ids=["that can be parsed", "that cannot"])
def test_a_file_of_a_newer_format_is_neither_read_nor_replaced(cache: CropCache, more: dict[str, str]) -> None:
    publish(cache)
    place = manifest_file(cache)
    place.write_text(json.dumps({**json.loads(place.read_text()), "format_version": FORMAT_VERSION + 1, **more}))
    with pytest.raises(StorageError, match="made by a newer prismcache: it has file format") as caught:
        cache.look(WHOLE)
    assert "Update prismcache" in caught.value.remedy
    assert list(cache.strays()) == []


def test_the_manifest_and_file_of_another_crop_under_this_crops_name_are_not_this_crop(cache: CropCache) -> None:
    """Copied by hand: every byte agrees, and it is the wrong tissue."""
    four = CropName(Split.INSTANCE, 4)
    publish(cache, four, OTHER)
    publish(cache)
    shutil.copy(manifest_file(cache, four), manifest_file(cache))
    assert find(cache) is None
    shutil.copy(cache.path(four), cache.path(WHOLE))
    assert find(cache) is None


def test_a_subset_under_the_name_of_the_whole_is_not_the_whole(cache: CropCache) -> None:
    publish(cache, SUBSET)
    manifest_file(cache, SUBSET).rename(manifest_file(cache))
    cache.path(SUBSET).rename(cache.path(WHOLE))
    assert find(cache) is None


# Setting aside and removing


def test_set_aside_moves_whatever_is_there_and_says_where(cache: CropCache) -> None:
    path = Path(publish(cache).path)
    refuge = cache.set_aside(WHOLE)
    assert refuge is not None
    assert refuge.read_bytes() == CONTENT
    assert refuge.parent == cache.root / STATE_FOLDER / "quarantine"
    assert not path.exists()
    assert cache.set_aside(WHOLE) is None


def test_two_bad_files_of_one_crop_do_not_replace_each_other_in_quarantine(cache: CropCache) -> None:
    for token in ("a", "b"):
        publish(cache, token=token)
        cache.set_aside(WHOLE)
    assert len(quarantined(cache.root)) == 2


def test_a_look_up_names_what_is_wrong_and_leaves_out_what_is_right(cache: CropCache) -> None:
    whole, subset = publish(cache), publish(cache, SUBSET, OTHER)
    os.truncate(whole.path, 10)
    assert cache.look(SUBSET) == Found(subset)
    os.truncate(subset.path, 10)
    assert set(cache.look(SUBSET).wrong) == {WHOLE, SUBSET}
    assert set(cache.look(WHOLE).wrong) == {WHOLE}


def test_a_removed_crop_is_gone_with_its_manifest_and_its_sources(cache: CropCache) -> None:
    publish(cache)
    publish(cache, SUBSET, OTHER)
    cache.remove(WHOLE)
    assert find(cache) is None
    assert [name for name in files_below(cache.root) if "crop_3." in name and "ch00-01" not in name] == []
    assert find(cache, SUBSET) is not None
    cache.remove(WHOLE)


def test_the_manifest_goes_first_so_that_a_removal_cut_short_leaves_no_hit(cache: CropCache) -> None:
    publish(cache)
    with _stop_at(2), pytest.raises(_StoppedError):
        cache.remove(WHOLE)
    assert cache.path(WHOLE).exists()
    assert find(cache) is None


# A stop at any moment


class _StoppedError(BaseException):
    """Everything ends here, as by kill -9; a BaseException, so that no handler of errors runs."""


class _Steps:
    """Counts changes of the folder; calls `at` before each with its number."""

    def __init__(self, at: Callable[[int], object]) -> None:
        self.count = 0
        self._at = at

    def before(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            self._at(self.count)
            return real(*arguments, **options)

        return operation


@contextmanager
def _steps(at: Callable[[int], object]) -> Iterator[_Steps]:
    """Watch everything that `CropCache` changes a folder with."""
    steps = _Steps(at)
    with (
        patch.object(Path, "replace", steps.before(Path.replace)),
        patch.object(Path, "rename", steps.before(Path.rename)),
        patch.object(Path, "unlink", steps.before(Path.unlink)),
        patch.object(Path, "open", steps.before(Path.open)),
        patch.object(os, "fsync", steps.before(os.fsync)),
    ):
        yield steps


@contextmanager
def _stop_at(number: int) -> Iterator[_Steps]:
    def stop(count: int) -> None:
        if count >= number:
            raise _StoppedError

    with _steps(stop) as steps:
        yield steps


def _cached_before(cache: CropCache, name: CropName) -> None:
    publish(cache, name, OTHER, "old")


def _stray_before(cache: CropCache, name: CropName) -> None:
    _cached_before(cache, name)
    manifest_file(cache, name).unlink()


def _damaged_before(cache: CropCache, name: CropName) -> None:
    _cached_before(cache, name)
    os.truncate(cache.path(name), 1000)


def _folder_before(cache: CropCache, name: CropName) -> None:
    _cached_before(cache, name)
    _folder(cache.path(name))


BEFORE: dict[str, Callable[[CropCache, CropName], object]] = {
    "nothing": lambda cache, name: cache.prepare(name.split),
    "an older right file": _cached_before,
    "a stray": _stray_before,
    "a damaged file": _damaged_before,
    "a folder": _folder_before,
}
any_before = pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)


@any_before
@pytest.mark.parametrize("name", [WHOLE, SUBSET], ids=["whole", "subset"])
def test_wherever_publication_stops_the_crop_is_absent_or_right(tmp_path: Path, before, name: CropName) -> None:
    def prepare(cache: CropCache) -> None:
        before(cache, name)
        cache.temporary(name, "t1").write_bytes(CONTENT)

    def finish(cache: CropCache) -> CropFile:
        temporary = cache.temporary(name, "t1")
        return cache.publish(name, temporary, manifest_of(name, CONTENT), SOURCES, "t1")

    untouched = CropCache(tmp_path / "whole")
    prepare(untouched)
    with _steps(lambda _: None) as steps:
        finish(untouched)
    assert steps.count > 10
    found_right = 0
    for number in range(1, steps.count + 1):
        cache = CropCache(tmp_path / str(number))
        prepare(cache)
        with _stop_at(number), pytest.raises(_StoppedError):
            finish(cache)
        copy = CropCache(tmp_path / f"{number} after a restart")
        shutil.copytree(cache.root, copy.root, symlinks=True)
        for each in (cache, copy):
            assert_absent_or_right(each, name, among=(CONTENT, OTHER))
            each.sweep()
            assert_absent_or_right(each, name, among=(CONTENT, OTHER))
            assert unfinished(each.root) == []
            found = find(each, name)
            found_right += found is not None and found.size == len(CONTENT)
            published = publish(each, name, CONTENT, "t2")
            assert find(each, name) == published
            assert each.path(name).read_bytes() == CONTENT
    assert found_right >= 2, "a publication that lacked only its last steps is not completed"


@any_before
def test_whichever_step_of_publication_the_disk_refuses_it_is_typed_and_the_crop_absent_or_right(
    tmp_path: Path, before
) -> None:
    number = 0
    while True:
        number += 1
        cache = CropCache(tmp_path / str(number))
        before(cache, WHOLE)
        cache.temporary(WHOLE, "t1").write_bytes(CONTENT)

        def refuse(count: int, only: int = number) -> None:
            if count == only:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with _steps(refuse) as steps:
            try:
                cache.publish(WHOLE, cache.temporary(WHOLE, "t1"), manifest_of(WHOLE, CONTENT), SOURCES, "t1")
            except NoSpaceError as error:
                assert "crop_3" in str(error)  # noqa: PT017 - an error that is not raised is as right
        if steps.count < number:
            break
        assert_absent_or_right(cache, among=(CONTENT, OTHER))
        cache.sweep()
        assert_absent_or_right(cache, among=(CONTENT, OTHER))
        assert [name for name in files_below(cache.root) if name.endswith(".tmp")] == []
    assert number > 10


def test_a_file_in_place_with_its_pending_manifest_is_adopted_only_if_it_is_right(cache: CropCache) -> None:
    cache.prepare(Split.INSTANCE)
    pending = manifest_file(cache).with_name(".crop_3.json.dead.tmp")
    for content, is_right in ((CONTENT[:-1] + b"?", False), (CONTENT, True)):
        pending.write_text(manifest_of(WHOLE, CONTENT).model_dump_json())
        cache.path(WHOLE).write_bytes(content)
        assert cache.sweep() == ([] if is_right else [pending])
        assert (find(cache) is not None) == is_right
        assert not pending.exists()


def test_a_pending_manifest_never_replaces_one_that_is_there(cache: CropCache) -> None:
    published = publish(cache)
    pending = manifest_file(cache).with_name(".crop_3.json.dead.tmp")
    pending.write_text(manifest_of(WHOLE, CONTENT, recipe="old").model_dump_json())
    assert cache.sweep() == [pending]
    assert find(cache) == published


# Sweeping


def test_a_sweep_deletes_what_the_dead_left_and_nothing_of_the_living(cache: CropCache) -> None:
    published = publish(cache)
    live = cache.locks.try_acquire("instance-crop_5.h5")
    assert live is not None
    five = CropName(Split.INSTANCE, 5)
    kept = cache.temporary(five, live)
    dead = [
        cache.temporary(five, "dead"),
        cache.root / STATE_FOLDER / "leases" / ".instance-crop_5.h5.dead.tmp",
        manifest_file(cache, five).with_name(".crop_5.json.dead.tmp"),
        manifest_file(cache, five).with_name(".crop_5.json.dead.stamped.tmp"),
    ]
    for path in (kept, *dead):
        path.write_bytes(b"unfinished")
    assert sorted(cache.sweep()) == sorted(dead)
    assert kept.exists()
    assert find(cache) == published
    cache.locks.release("instance-crop_5.h5", live)
    assert cache.sweep() == [kept]


def test_a_sweep_leaves_files_that_are_not_ours(cache: CropCache) -> None:
    cache.prepare(Split.INSTANCE)
    foreign = [cache.root / "instance" / name for name in ("notes.tmp", ".hidden", "crop_3.h5.tmp", "README")]
    for path in foreign:
        path.write_text("mine")
    assert cache.sweep() == []
    assert all(path.exists() for path in foreign)


# A folder that cannot be used


@pytest.mark.parametrize("in_the_way", ["", "instance", STATE_FOLDER, f"{STATE_FOLDER}/manifests"])
def test_a_file_where_a_folder_should_be_is_a_typed_error(cache: CropCache, in_the_way: str) -> None:
    path = cache.root / in_the_way
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("in the way")
    with pytest.raises(StorageError, match="root"):
        cache.prepare(Split.INSTANCE)
    assert find(cache) is None


def test_a_read_only_disk_is_unwritable(cache: CropCache) -> None:
    error = OSError(errno.EROFS, os.strerror(errno.EROFS))
    with (
        patch.object(Path, "mkdir", side_effect=error),
        pytest.raises(StorageUnwritableError, match="Read-only file system"),
    ):
        cache.prepare(Split.INSTANCE)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_folders_and_files_follow_the_group_permissions_of_the_root(cache: CropCache, umask: int) -> None:
    cache.root.mkdir()
    cache.root.chmod(0o2770)
    before = os.umask(umask)
    try:
        published = publish(cache)
        lock = cache.locks.try_acquire(WHOLE.lock)
    finally:
        os.umask(before)
    folders = [path for path in cache.root.rglob("*") if path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) & 0o2070 for path in folders} == {0o2070}
    files = [Path(published.path), manifest_file(cache), cache.locks_folder / WHOLE.lock]
    assert lock is not None
    assert [path.stat().st_mode & 0o060 for path in files] == [0o060] * 3


def test_folders_that_cannot_all_be_made_are_taken_away_again(cache: CropCache) -> None:
    real, made = Path.mkdir, []

    def mkdir(path: Path, mode: int) -> None:
        if path.name == "quarantine":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        made.append(path)
        real(path, mode)

    with patch.object(Path, "mkdir", mkdir), pytest.raises(StorageUnwritableError, match="quarantine"):
        cache.prepare(Split.INSTANCE)
    assert made
    assert not cache.root.exists()
