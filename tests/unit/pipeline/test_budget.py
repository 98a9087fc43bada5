"""How a memory limit is spent."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismcache.errors import MemoryLimitError
from prismcache_service.pipeline.plan.budget import Budget, plan_budget
from prismcache_service.pipeline.plan.plan import plan_crop
from tests.support.crop_sources import crop_source, published_crop

PLAN = plan_crop(published_crop(), None, strict=False)
USED = 120_000_000
LIMIT = 400_000_000
OBJECT = 3_000_000


def budget(limit: int = LIMIT, *, used: int = USED, threads: int = 2, concurrency: int = 32) -> Budget:
    return plan_budget(PLAN, limit=limit, used=used, threads=threads, concurrency=concurrency)


def least() -> int:
    """The lowest limit with which the published crop can be made, by bisection."""
    low, high = USED, LIMIT
    while high - low > 1:
        middle = (low + high) // 2
        try:
            budget(middle)
            high = middle
        except MemoryLimitError:
            low = middle
    return high


def test_the_published_crop_fits_the_default_limit_with_room_for_fetching_ahead() -> None:
    found = budget()
    assert found.block_bytes == max(PLAN.raw.block_bytes, PLAN.labels.block_bytes)
    assert found.slots > 8
    assert found.blocks > PLAN.raw.open_blocks
    assert found.deflated_blocks == 2


@given(limit=st.integers(USED, 4_000_000_000), threads=st.integers(1, 64), concurrency=st.integers(1, 1024))
def test_what_is_planned_never_exceeds_the_limit(limit: int, threads: int, concurrency: int) -> None:
    try:
        found = budget(limit, threads=threads, concurrency=concurrency)
    except MemoryLimitError:
        return
    buffers = found.block_bytes * found.blocks + 2 * OBJECT * found.slots  # obstore has an object twice
    assert USED + buffers + found.deflated_blocks * PLAN.raw.block_bytes < limit
    assert found.deflated_blocks in {1, 2}
    assert found.slots >= 2
    assert found.slots <= max(2, 2 * concurrency)
    # Fewer could wait for each other for ever.
    assert found.blocks >= max(array.open_blocks for array in (PLAN.raw, PLAN.labels))


def test_more_memory_never_gives_less() -> None:
    sizes = [budget(limit) for limit in range(least(), 1_000_000_000, 17_000_000)]
    assert [found.slots for found in sizes] == sorted(found.slots for found in sizes)
    assert [found.blocks for found in sizes] == sorted(found.blocks for found in sizes)
    assert sizes[-1].slots == 64
    deflated = [found.deflated_blocks for found in sizes]
    assert deflated == sorted(deflated)


def test_too_small_a_limit_says_how_much_would_do() -> None:
    with pytest.raises(MemoryLimitError) as caught:
        budget(least() - 1)
    said = re.search(r"needs (\d+) MB of memory at least .* the limit is (\d+) MB", str(caught.value))
    assert said is not None
    assert int(said[1]) == pytest.approx(least() / 1e6, abs=1)
    assert "PRISMCACHE_MEMORY_LIMIT" in caught.value.remedy


def test_a_small_crop_takes_no_more_than_it_has() -> None:
    crop = crop_source((1, 4, 4, 4), (1, 4, 4, 4), (4, 4, 4), (4, 4, 4))
    found = plan_budget(plan_crop(crop, None, strict=False), limit=LIMIT, used=USED, threads=2, concurrency=32)
    assert found.slots == 2
    assert found.block_bytes * found.blocks < 10_000


def test_a_crop_of_absent_chunks_alone_needs_no_object() -> None:
    keys = ["raw/0.0.0.0", "labels/0.0.0"]
    crop = crop_source((1, 4, 4, 4), (1, 4, 4, 4), (4, 4, 4), (4, 4, 4), absent=keys)
    found = plan_budget(plan_crop(crop, None, strict=False), limit=LIMIT, used=USED, threads=2, concurrency=32)
    assert found.slots == 2


def test_an_object_larger_than_the_limit_is_refused_before_it_is_fetched() -> None:
    crop = crop_source((1, 4, 4, 4), (1, 4, 4, 4), (4, 4, 4), (4, 4, 4), object_bytes=10**12)
    with pytest.raises(MemoryLimitError, match="the limit is 400 MB"):
        plan_budget(plan_crop(crop, None, strict=False), limit=LIMIT, used=USED, threads=2, concurrency=32)
