"""Whose crop is made next."""

from __future__ import annotations

import random
from datetime import UTC, datetime

from prismcache.schema import JobRequest, Split, State
from prismcache_service.jobs.flights import Wish, choose
from prismcache_service.jobs.live import LiveJob
from prismcache_service.store import JobRecord


def wish(crop: int, *, priority: int = 0, owner: str = "ada", open_crops: int = 1, order: int | None = None) -> Wish:
    request = JobRequest(split=Split.INSTANCE, crops=(crop,), priority=priority)
    job = LiveJob(JobRecord("a", owner, request, State.QUEUED, (), datetime.now(UTC)))
    return Wish(job, crop, open_crops, crop if order is None else order)


def in_order(wishes: list[Wish]) -> list[int]:
    """Crops in the order in which one worker would make them, whatever order they are given in."""
    left, made = list(wishes), []
    random.Random(0).shuffle(left)
    while (chosen := choose(left, {})) is not None:
        left.remove(chosen)
        made.append(chosen.crop)
    return made


def test_nothing_is_chosen_where_nobody_waits() -> None:
    assert choose([], {}) is None


def test_the_oldest_of_equal_wishes_comes_first() -> None:
    assert in_order([wish(crop) for crop in range(5)]) == [0, 1, 2, 3, 4]


def test_a_small_request_passes_a_large_one() -> None:
    everything = [wish(crop, open_crops=14) for crop in range(14)]
    assert in_order([*everything, wish(20, open_crops=1)])[0] == 20


def test_a_higher_priority_goes_before_everything() -> None:
    assert in_order([wish(0), wish(1, priority=1, open_crops=14), wish(2, priority=-1)]) == [1, 0, 2]


def test_an_owner_whose_crops_are_in_the_making_waits_for_the_others() -> None:
    wishes = [wish(0, owner="ada"), wish(1, owner="bob", open_crops=14)]
    chosen = choose(wishes, {"ada": 1})
    assert chosen is not None
    assert chosen.job.owner == "bob"
