"""What was set aside: how long it stays, what it takes, and how it goes."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from prismcache.errors import StorageUnwritableError
from prismcache.layout import STATE_FOLDER
from prismcache.schema import Split
from prismcache_service.cache import CropCache, CropName
from prismcache_service.cache.quarantine import Quarantine
from tests.support.cache_root import quarantined
from tests.support.stored_crops import store_crop

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def quarantine(tmp_path: Path) -> Quarantine:
    (tmp_path / "quarantine").mkdir()
    return Quarantine(tmp_path / "quarantine")


def take(quarantine: Quarantine, label: str, since: datetime, size: int = 10) -> Path:
    source = quarantine.folder.parent / label
    source.write_bytes(b"." * size)
    refuge = quarantine.take(source, label, since)
    assert refuge is not None
    return refuge


def test_entries_come_oldest_first_with_what_they_take(quarantine: Quarantine) -> None:
    paths = [take(quarantine, f"crop_{days}.h5", NOON - days * DAY, size=days) for days in (1, 3, 2)]
    assert [(entry.path, entry.since, entry.size) for entry in quarantine.entries()] == [
        (paths[index], NOON - days * DAY, days) for index, days in ((1, 3), (2, 2), (0, 1))
    ]


def test_what_is_older_than_its_time_goes_and_the_rest_stays(quarantine: Quarantine) -> None:
    old, young = (take(quarantine, "a", NOON - days * DAY) for days in (8, 7))
    assert [entry.path for entry in quarantine.expire(7 * DAY, NOON)] == [old]
    assert [entry.path for entry in quarantine.entries()] == [young]


def test_a_folder_goes_with_its_content_and_a_link_without_its_target(quarantine: Quarantine) -> None:
    outside = quarantine.folder.parent / "outside"
    (outside / "below").mkdir(parents=True)
    (outside / "below" / "file").write_bytes(b"." * 5000)
    link = quarantine.folder.parent / "link"
    link.symlink_to(outside)
    quarantine.take(link, "link", NOON)
    assert quarantine.entries()[0].size < 5000
    quarantine.delete(quarantine.entries())
    assert (outside / "below" / "file").exists()
    quarantine.take(outside, "folder", NOON)
    assert quarantine.entries()[0].size >= 5000
    assert len(quarantine.delete(quarantine.entries())) == 1
    assert quarantine.entries() == []


def test_what_somebody_put_there_by_hand_counts_from_then(quarantine: Quarantine) -> None:
    (quarantine.folder / "notes.txt").write_text("why")
    assert quarantine.expire(DAY) == []
    assert [entry.path.name for entry in quarantine.expire(DAY, datetime.now(UTC) + 2 * DAY)] == ["notes.txt"]


def test_what_is_not_there_is_not_taken_and_what_cannot_be_is_an_error(quarantine: Quarantine, tmp_path: Path) -> None:
    assert quarantine.take(tmp_path / "nothing", "a") is None
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageUnwritableError):
        quarantine.take(tmp_path / "file" / "below", "a")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may delete everything")
def test_what_cannot_be_deleted_stays_and_is_not_counted(quarantine: Quarantine) -> None:
    take(quarantine, "a", NOON)
    quarantine.folder.chmod(0o500)
    try:
        assert quarantine.delete(quarantine.entries()) == []
    finally:
        quarantine.folder.chmod(0o700)


def test_a_cache_is_swept_of_what_was_set_aside_long_enough_ago(tmp_path: Path) -> None:
    cache, name = CropCache(tmp_path, keep_quarantine=DAY), CropName(Split.INSTANCE, 0)
    store_crop(cache, name)
    old = cache.quarantine.take(cache.path(name), name.lock, datetime.now(UTC) - 2 * DAY)
    store_crop(cache, name)
    young = cache.set_aside(name)
    assert young is not None
    assert cache.sweep() == [old]
    assert quarantined(cache.root) == [young.name]


def test_a_catalog_that_a_kill_left_half_written_is_swept(tmp_path: Path) -> None:
    cache = CropCache(tmp_path)
    cache.prepare(Split.INSTANCE)
    left = tmp_path / STATE_FOLDER / ".catalog.json.0123456789abcdef.tmp"
    left.write_text("{")
    kept = tmp_path / STATE_FOLDER / "catalog.json"
    kept.write_text("{}")
    assert cache.sweep() == [left]
    assert not left.exists()
    assert kept.exists()
