"""What every job store does: the same tests for the one in memory, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from prismcache.schema import CropFile, CropProgress, JobRequest, Problem, Split, State
from prismcache_service.store import LeaseRecord, LinkRecord
from prismcache_service.store.base import Figures, JobRecord, JobStore, MemoryJobStore
from prismcache_service.store.sql import SqlJobStore
from prismcache_service.store.tables import metadata

pytest_plugins = ["tests.support.postgres"]

NOON = datetime(2026, 5, 4, 12, 0, 0, 123456, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
IMPOSSIBLE = ["", "nobody", "j\0", "j1\0", "\udc80", "x" * 100_000, "j1' OR '1'='1", "%", "ж"]
FULL_FILE = CropFile(
    split=Split.SEMANTIC,
    crop=7,
    channels=(0, 2),
    path="/lab/Präparate/細胞 🧠/crop_7.ch00_02.h5",
    size=2**40 + 1,
    sha256="ab" * 32,
    missing_chunks=3,
)
FULL_PROBLEM = Problem(title="t", status=502, code="source_corrupt", detail='"ñ"\n\0\\ 🧠', remedy="r")


def a_job(name="j1", *, crops=(0,), after=0, state=State.QUEUED, owner="ann", split="instance", **request) -> JobRecord:
    """A job that was made so many minutes after noon."""
    return JobRecord(
        id=name,
        owner=owner,
        request=JobRequest(split=split, crops=crops, **request),
        state=state,
        crops=tuple(CropProgress(crop=crop) for crop in crops),
        created_at=NOON + after * MINUTE,
    )


def a_lease(name="l1", *, until=1, crops=(3, 1), split=Split.INSTANCE, owner="ann") -> LeaseRecord:
    """A lease that ends so many minutes after noon."""
    return LeaseRecord(id=name, owner=owner, split=split, crops=crops, expires_at=NOON + until * MINUTE)


def a_link(name="k1", *, until=1, crop=3, owner="ann", note="") -> LinkRecord:
    """A link that ends so many minutes after noon."""
    return LinkRecord(name, "ab" * 32, owner, Split.INSTANCE, crop, note, NOON, NOON + until * MINUTE)


async def add(store: JobStore, *jobs: JobRecord) -> None:
    for job in jobs:
        await store.add_job(job)


def names(jobs: list[JobRecord]) -> list[str]:
    return [job.id for job in jobs]


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
class JobStoreSuite:
    """A subclass gives the fixture `store`, an empty one."""

    async def test_a_job_comes_back_as_it_was(self, store):
        job = a_job(crops=(5, 0, 3), owner="Åsa 🧠", channels=(1, 0), strict=True, priority=-3)
        event = await store.add_job(job)
        assert (event.job, event.kind, event.state, event.crop) == ("j1", "submitted", State.QUEUED, None)
        assert event.seq > 0
        assert abs(datetime.now(UTC) - event.at) < MINUTE
        assert await store.job("j1") == replace(job, last_event=event.seq)
        assert await store.events("j1") == [event]

    async def test_a_job_of_all_crops_and_one_of_none(self, store):
        everything = replace(a_job("j1"), request=JobRequest(split=Split.SEMANTIC))
        nothing = replace(a_job("j2", crops=()), state=State.DONE)
        await add(store, everything, nothing)
        assert (await store.job("j1")).request == everything.request
        assert (await store.job("j2")).crops == ()

    @pytest.mark.parametrize("name", IMPOSSIBLE)
    async def test_unknown_ids_are_unknown(self, store, name):
        await add(store, a_job())
        assert await store.job(name) is None
        assert await store.events(name) == []
        assert await store.lease(name) is None
        assert await store.drop_lease(name) is False
        assert (await store.link(name), await store.drop_link(name)) == (None, False)
        assert await store.jobs(owner=name) == []
        with pytest.raises(KeyError):
            await store.update_job(name, "crop", State.RUNNING)

    async def test_submitters_come_back_and_can_be_set(self, store):
        await add(store, replace(a_job("j1"), submitters=("", "b")), a_job("j2"))
        assert (await store.job("j1")).submitters == ("", "b")
        await store.set_submitters("j1", {"a"})
        await store.set_submitters("unknown", ["x"])
        assert [job.submitters for job in await store.unfinished_jobs()] == [("a",), ()]

    async def test_an_update_changes_the_state_and_one_crop(self, store):
        await add(store, a_job(crops=(5, 7, 3)), a_job("j2", crops=(7,)))
        done = CropProgress(
            crop=7, state=State.DONE, objects_done=2, objects_total=2, bytes_done=2**40, bytes_total=2**41
        )
        event = await store.update_job("j1", "crop", State.RUNNING, done)
        assert (event.job, event.kind, event.state, event.crop) == ("j1", "crop", State.RUNNING, done)
        job = await store.job("j1")
        assert (job.state, job.last_event) == (State.RUNNING, event.seq)
        assert job.crops == (CropProgress(crop=5), done, CropProgress(crop=3))
        assert (await store.events("j1"))[-1] == event
        other = await store.job("j2")
        assert (other.state, other.crops) == (State.QUEUED, (CropProgress(crop=7),))
        assert (await store.update_job("j1", "finished", State.CANCELLED)).crop is None
        assert await store.job("j1") == replace(job, state=State.CANCELLED, last_event=job.last_event + 1)

    async def test_files_and_problems_come_back_as_they_were(self, store):
        await add(store, a_job(crops=(7,)))
        for crop in (
            CropProgress(crop=7, state=State.DONE, file=FULL_FILE),
            CropProgress(crop=7, state=State.FAILED, problem=FULL_PROBLEM),
        ):
            event = await store.update_job("j1", "crop", crop.state, crop)
            assert (await store.job("j1")).crops == (crop,)
            assert (await store.events("j1"))[-1] == event

    async def test_an_update_of_an_unknown_crop_changes_nothing(self, store):
        await add(store, a_job(crops=(5,)), a_job("j2", crops=(6,)))
        before = await store.job("j1")
        with pytest.raises(KeyError):
            await store.update_job("j1", "crop", State.DONE, CropProgress(crop=6))
        assert await store.job("j1") == before
        assert len(await store.events("j1")) == 1

    async def test_events_are_numbered_over_all_jobs(self, store):
        await add(store, a_job("j1"), a_job("j2"))
        seqs = [(await store.update_job(name, "crop", State.RUNNING)).seq for name in ("j1", "j2", "j2", "j1")]
        assert seqs == sorted(set(seqs))
        first = (await store.events("j1"))[0].seq
        assert [event.seq for event in await store.events("j1")] == [first, seqs[0], seqs[3]]

    async def test_events_after_one_and_no_more_than_asked(self, store):
        await add(store, a_job())
        seqs = [(await store.update_job("j1", "crop", State.RUNNING)).seq for _ in range(5)]
        assert [event.seq for event in await store.events("j1", after=seqs[1])] == seqs[2:]
        assert [event.seq for event in await store.events("j1", after=seqs[1], limit=2)] == seqs[2:4]
        assert await store.events("j1", after=seqs[-1]) == []
        assert await store.events("j1", after=10**30) == []

    async def test_unfinished_jobs_oldest_first(self, store):
        states = {"done": State.DONE, "failed": State.FAILED, "gone": State.CANCELLED, "b": State.RUNNING}
        await add(store, *(a_job(name, after=3, state=state) for name, state in states.items()))
        await add(store, a_job("z", after=1), a_job("a", after=3, crops=(2, 1)))
        found = await store.unfinished_jobs()
        assert names(found) == ["z", "a", "b"]
        assert [crop.crop for crop in found[1].crops] == [2, 1]
        await store.update_job("a", "finished", State.DONE)
        assert names(await store.unfinished_jobs()) == ["z", "b"]

    async def test_jobs_newest_first_then_by_code_point_of_the_id(self, store):
        await add(store, a_job("old"), *(a_job(name, after=1) for name in ("b", "B", "a", "_", "é", "0")))
        assert names(await store.jobs()) == [*sorted(("b", "B", "a", "_", "é", "0"), reverse=True), "old"]

    @pytest.mark.parametrize(
        ("start", "found"),
        [("ab", ["ab1", "ab2"]), ("ab1", ["ab1"]), ("A", ["AB1"]), ("%", ["%"]), ("_", []), ("é", ["é"]), ("\0", [])],
    )
    async def test_ids_by_their_start(self, store, start, found):
        await add(store, *(a_job(name) for name in ("ab2", "ab1", "b", "AB1", "%", "é")))
        assert await store.job_ids(start, limit=5) == found
        assert await store.job_ids(start, limit=1) == found[:1]

    async def test_pages_of_jobs(self, store):
        await add(store, *(a_job(f"j{number}", after=number // 3) for number in range(10)))
        everything = await store.jobs()
        assert names(everything) == [f"j{number}" for number in (9, 8, 7, 6, 5, 4, 3, 2, 1, 0)]
        page, paged = await store.jobs(limit=4), []
        while page:
            paged += page
            page = await store.jobs(limit=4, before=(page[-1].created_at, page[-1].id))
        assert paged == everything
        elsewhere = everything[3].created_at.astimezone(timezone(timedelta(hours=-7)))
        assert await store.jobs(before=(elsewhere, everything[3].id)) == everything[4:]

    @pytest.mark.parametrize(("year", "found"), [(1, []), (9999, ["j1"])])
    @pytest.mark.parametrize("hours", [-14, 0, 14])
    async def test_cursors_at_the_ends_of_the_calendar(self, store, year, found, hours):
        await add(store, a_job())
        day = (1, 1) if year == 1 else (12, 31)
        moment = datetime(year, *day, 12, tzinfo=timezone(timedelta(hours=hours)))
        assert names(await store.jobs(before=(moment, "j\0"))) == found

    async def test_filters(self, store):
        await add(
            store,
            a_job("j1", state=State.DONE),
            a_job("j2", after=1, owner="bob", split="semantic", state=State.FAILED),
            a_job("j3", after=2, owner="bob", state=State.RUNNING),
            a_job("j4", after=3, owner="", state=State.DONE),
        )
        assert names(await store.jobs(states=[State.DONE])) == ["j4", "j1"]
        assert names(await store.jobs(states={State.DONE, State.RUNNING}, owner="bob")) == ["j3"]
        assert names(await store.jobs(split=Split.SEMANTIC)) == ["j2"]
        assert names(await store.jobs(owner="bob")) == ["j3", "j2"]
        assert names(await store.jobs(owner="")) == ["j4"]
        assert names(await store.jobs(states=[State.DONE], split=Split.INSTANCE, limit=1)) == ["j4"]
        assert names(await store.jobs(split=Split.INSTANCE, before=(NOON + 2 * MINUTE, "j3"))) == ["j1"]
        assert await store.jobs(owner="ann", states=[State.QUEUED]) == []

    @pytest.mark.parametrize("hours", [-11, 0, 5.75])
    async def test_times_keep_their_moment_to_the_microsecond(self, store, hours):
        zone = timezone(timedelta(hours=hours))
        moment = datetime(2026, 12, 31, 23, 59, 59, 999999, tzinfo=zone)
        await add(store, replace(a_job(), created_at=moment))
        await store.put_lease(replace(a_lease(), expires_at=moment))
        await store.touch([(Split.INSTANCE, 1)], moment)
        found = [(await store.job("j1")).created_at, (await store.lease("l1")).expires_at]
        found += (await store.last_used()).values()
        assert found == [moment] * 3
        assert all(time.tzinfo is not None for time in found)

    async def test_forgets_only_jobs_that_ended_before(self, store):
        await add(store, a_job("ended", crops=(1, 2)), a_job("later"), a_job("running", after=-1000))
        end = (await store.update_job("ended", "finished", State.FAILED)).at
        while (await store.update_job("later", "finished", State.DONE)).at <= end:
            pass  # a coarse clock
        assert await store.forget_jobs(end) == 0
        assert await store.forget_jobs(end + timedelta(microseconds=1)) == 1
        assert names(await store.jobs()) == ["later", "running"]
        assert await store.job("ended") is None
        assert await store.events("ended") == []
        with pytest.raises(KeyError):
            await store.update_job("ended", "crop", State.RUNNING, CropProgress(crop=1))

    async def test_numbers_of_forgotten_events_are_not_given_again(self, store):
        await add(store, a_job())
        last = (await store.update_job("j1", "finished", State.DONE)).seq
        assert await store.forget_jobs(datetime.now(UTC) + MINUTE) == 1
        assert (await store.add_job(a_job("j2"))).seq > last

    async def test_leases(self, store):
        lease = a_lease(owner="Åsa")
        await store.put_lease(lease)
        await store.put_lease(a_lease("l2", until=2, split=Split.SEMANTIC))
        assert await store.lease("l1") == lease
        assert set(await store.leases(NOON)) == {lease, a_lease("l2", until=2, split=Split.SEMANTIC)}
        longer = a_lease(until=9, crops=(4,), owner="bob")
        await store.put_lease(longer)
        assert await store.lease("l1") == longer
        assert len(await store.leases(NOON)) == 2
        assert await store.drop_lease("l1") is True
        assert await store.drop_lease("l1") is False
        assert await store.lease("l1") is None

    async def test_leases_run_out(self, store):
        await store.put_lease(a_lease("l1", until=1))
        await store.put_lease(a_lease("l2", until=2))
        assert await store.lease("l1") == a_lease("l1", until=1)
        assert [lease.id for lease in await store.leases(NOON + MINUTE)] == ["l2"]
        await store.put_lease(a_lease("l1", until=5))  # renewed too late, but renewed
        assert {lease.id for lease in await store.leases(NOON + MINUTE)} == {"l1", "l2"}

    async def test_links(self, store):
        link = a_link(owner="Åsa", note='for "Ada" 🧠')
        await store.put_link(link)
        await store.put_link(a_link("k2", until=2, crop=7))
        assert (await store.link("k1"), await store.link("k3")) == (link, None)
        assert set(await store.links(NOON)) == {link, a_link("k2", until=2, crop=7)}
        assert [found.id for found in await store.links(NOON + MINUTE)] == ["k2"]
        assert (await store.drop_link("k2"), await store.drop_link("k2")) == (True, False)
        assert await store.links(NOON + MINUTE) == []

    async def test_pins(self, store):
        assert await store.pins() == set()
        await store.pin(Split.INSTANCE, 3, "ann")
        await store.pin(Split.INSTANCE, 3, "bob")
        await store.pin(Split.SEMANTIC, 3, "ann")
        assert await store.pins() == {(Split.INSTANCE, 3), (Split.SEMANTIC, 3)}
        assert await store.unpin(Split.INSTANCE, 3) is True
        assert await store.unpin(Split.INSTANCE, 3) is False
        assert await store.pins() == {(Split.SEMANTIC, 3)}

    async def test_last_uses(self, store):
        assert await store.last_used() == {}
        await store.touch([], NOON)
        await store.touch([(Split.INSTANCE, 1), (Split.SEMANTIC, 1), (Split.INSTANCE, 1)], NOON)
        await store.touch(iter([(Split.INSTANCE, 1), (Split.INSTANCE, 2)]), NOON + MINUTE)
        assert await store.last_used() == {
            (Split.INSTANCE, 1): NOON + MINUTE,
            (Split.SEMANTIC, 1): NOON,
            (Split.INSTANCE, 2): NOON + MINUTE,
        }

    async def test_figures_of_all_rows_add_up_and_old_ones_are_forgotten(self, store):
        hour = datetime(2026, 5, 4, 12, tzinfo=UTC)
        long_ago = hour - 90 * 24 * 60 * MINUTE
        assert await store.figures(long_ago, 300) == []
        rows = {
            1: Figures(hour, 2**40, 1, 0, 50),
            2: Figures(hour, 7, 2, 3, 2**50),  # another process, in the same interval
            3: Figures(hour + 5 * MINUTE, 5, 0, 1, 60),
            4: Figures(hour + 10 * MINUTE, 9, 0, 0, 70),
        }
        for row_id, figures in rows.items():
            await store.put_figures(row_id, replace(figures, hits=99), long_ago)
            await store.put_figures(row_id, figures, long_ago)  # replaces: what was written twice counts once
        first = Figures(hour, 2**40 + 7, 3, 3, 2**50)
        assert await store.figures(hour, 300) == [first, rows[3], rows[4]]
        assert await store.figures(hour, 600) == [replace(first, fetched_bytes=2**40 + 12, misses=4), rows[4]]
        assert await store.figures(hour + MINUTE, 300) == [rows[3], rows[4]]
        await store.put_figures(5, rows[4], hour + 10 * MINUTE)
        assert await store.figures(long_ago, 300) == [replace(rows[4], fetched_bytes=18)]

    async def test_a_hundred_updates_at_once(self, store):
        crops = tuple(range(25))
        await add(store, *(a_job(f"j{number}", crops=crops) for number in range(4)))
        updates = [
            store.update_job(
                f"j{number}", "crop", State.RUNNING, CropProgress(crop=crop, state=State.DONE, bytes_done=crop)
            )
            for crop in crops
            for number in range(4)
        ]
        done = await asyncio.gather(*updates, store.touch([(Split.INSTANCE, 1)], NOON), store.jobs())
        recorded = done[:-2]
        assert len({event.seq for event in recorded}) == 100
        for number in range(4):
            job = await store.job(f"j{number}")
            assert [(crop.crop, crop.state, crop.bytes_done) for crop in job.crops] == [
                (n, State.DONE, n) for n in crops
            ]
            events = await store.events(job.id)
            assert job.last_event == events[-1].seq
            assert [event.seq for event in events[1:]] == sorted(e.seq for e in recorded if e.job == job.id)

    async def test_a_caller_who_hangs_up_leaves_all_or_nothing(self, store):
        await add(store, a_job(crops=tuple(range(30))))
        for crop in range(30):
            update = store.update_job("j1", "crop", State.RUNNING, CropProgress(crop=crop, state=State.DONE))
            task = asyncio.ensure_future(update)
            for _ in range(crop):  # a little later each time
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await store.update_job("j1", "finished", State.DONE)
        job = await store.job("j1")
        recorded = [event.crop.crop for event in await store.events("j1") if event.crop is not None]
        assert len(set(recorded)) == len(recorded)
        assert set(recorded) == {crop.crop for crop in job.crops if crop.state is State.DONE}

    async def test_it_responds_and_closes(self, store):
        await store.check()
        await store.aclose()


class TestMemoryJobStore(JobStoreSuite):
    @pytest.fixture
    def store(self):
        return MemoryJobStore()


class TestSqlite(JobStoreSuite):
    @pytest.fixture
    async def store(self, tmp_path):
        opened = await SqlJobStore.open(f"sqlite:///{tmp_path}/jobs.sqlite")
        yield opened
        await opened.aclose()


@pytest.fixture(scope="module")
def postgres_url(postgres_server):
    """One database for all, emptied by each: to make one takes longer than a test."""
    return postgres_server.create_database()


class TestPostgresql(JobStoreSuite):
    @pytest.fixture
    async def store(self, postgres_url):
        opened = await SqlJobStore.open(postgres_url)
        async with opened._writing() as connection:
            for table in metadata.sorted_tables[::-1]:
                await connection.execute(table.delete())
        yield opened
        await opened.aclose()
