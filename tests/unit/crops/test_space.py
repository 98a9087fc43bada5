"""What is evicted, and what room is promised."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismcache.schema import Split
from prismcache_service.cache import CropName, SetAside
from prismcache_service.crops.space import Bounds, Clearing, Room, StoredFile, choose_victims, plan_clearing

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def stored(crop: int, size: int = 100, age: int = 0) -> StoredFile:
    return StoredFile(CropName(Split.INSTANCE, crop), size, BEGIN - timedelta(hours=age))


def crops(files: list[StoredFile]) -> list[int]:
    return [file.name.crop for file in files]


def test_the_least_recently_used_goes_first() -> None:
    files = [stored(0, age=1), stored(1, age=3), stored(2, age=2)]
    assert crops(choose_victims(files, set(), 150, 0)) == [1, 2]


def test_what_is_protected_stays() -> None:
    files = [stored(0, age=3), stored(1, age=2), stored(2, age=1)]
    assert crops(choose_victims(files, {(Split.INSTANCE, 0)}, 100, 0)) == [1]


def test_the_same_crop_of_the_other_split_is_not_protected() -> None:
    assert crops(choose_victims([stored(0)], {(Split.SEMANTIC, 0)}, 100, 0)) == [0]


def test_nothing_is_evicted_in_vain() -> None:
    files = [stored(0), stored(1)]
    assert choose_victims(files, {(Split.INSTANCE, 0)}, 150, 0) == []


def test_an_eviction_goes_on_to_the_low_water_mark_as_far_as_it_can() -> None:
    files = [stored(crop, age=10 - crop) for crop in range(5)]
    assert crops(choose_victims(files, set(), 100, 150)) == [0, 1, 2]
    assert crops(choose_victims(files[:2], set(), 100, 1000)) == [0, 1]


ASIDE = [SetAside(Path(name), BEGIN, 100) for name in ("oldest", "older", "old")]


@pytest.mark.parametrize(
    ("lacking", "aside", "evicted"),
    [(1, 1, []), (100, 1, []), (101, 2, []), (300, 3, []), (301, 3, [1]), (450, 3, [1, 0])],
)
def test_the_quarantine_goes_before_any_crop_and_no_more_of_it_than_is_needed(
    lacking: int, aside: int, evicted: list[int]
) -> None:
    plan = plan_clearing(ASIDE, [stored(0), stored(1, age=1)], set(), lacking, 0)
    assert plan is not None
    assert (plan.aside, crops(list(plan.files))) == (ASIDE[:aside], evicted)


def test_nothing_of_the_quarantine_goes_in_vain() -> None:
    assert plan_clearing(ASIDE, [stored(0)], {(Split.INSTANCE, 0)}, 301, 0) is None
    assert plan_clearing([], [stored(0)], set(), 100, 0) == Clearing([], [stored(0)])


@given(
    sizes=st.lists(st.integers(1, 1000), max_size=8),
    kept=st.sets(st.integers(0, 7)),
    lacking=st.integers(1, 5000),
    spare=st.integers(0, 2000),
)
def test_the_chosen_are_enough_or_none(sizes: list[int], kept: set[int], lacking: int, spare: int) -> None:
    files = [stored(crop, size, age=crop) for crop, size in enumerate(sizes)]
    chosen = choose_victims(files, {(Split.INSTANCE, crop) for crop in kept}, lacking, spare)
    possible = sum(size for crop, size in enumerate(sizes) if crop not in kept)
    assert not kept & set(crops(chosen))
    assert (sum(file.size for file in chosen) >= lacking) == (possible >= lacking)
    assert chosen or possible < lacking


@pytest.mark.parametrize(
    ("room", "size", "lacking"),
    [
        (Room(used=0, reserved=0, free=10_000), 1000, 0),
        (Room(used=900, reserved=0, free=10_000), 100, 0),
        (Room(used=900, reserved=0, free=10_000), 101, 1),
        (Room(used=500, reserved=400, free=10_000), 200, 100),
        (Room(used=0, reserved=0, free=150), 100, 50),
        (Room(used=0, reserved=60, free=200), 100, 60),
    ],
)
def test_promises_count_as_use_and_leave_the_disk_its_minimum(room: Room, size: int, lacking: int) -> None:
    assert max(0, room.lacking(size, Bounds(max_bytes=1000, min_free_bytes=100))) == lacking


def test_without_a_bound_only_the_disk_counts() -> None:
    assert Room(used=10**12, reserved=0, free=500).lacking(500, Bounds()) == 0
