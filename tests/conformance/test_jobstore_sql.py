"""What a job store in a database does besides: it outlives its process, and two services can share it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from prismcache.errors import ConfigError, StorageError, StorageUnwritableError
from prismcache.schema import CropProgress, JobRequest, Split, State
from prismcache_service.store import LeaseRecord, migrations
from prismcache_service.store.base import JobRecord
from prismcache_service.store.database import WRITES, make_engine, parse_url
from prismcache_service.store.sql import SqlJobStore
from prismcache_service.store.tables import metadata

pytest_plugins = ["tests.support.postgres"]
pytestmark = pytest.mark.anyio

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)

# Says the number of each event as soon as the store has acknowledged it, until it is killed.
WRITER = """
import asyncio, sys
from datetime import UTC, datetime
from prismcache.schema import CropProgress, JobRequest, State
from prismcache_service.store.base import JobRecord
from prismcache_service.store.sql import SqlJobStore

async def main(url, name):
    store = await SqlJobStore.open(url)
    crop = CropProgress(crop=0)
    request = JobRequest(split="instance", crops=(0,))
    event = await store.add_job(JobRecord(name, "", request, State.QUEUED, (crop,), datetime.now(UTC)))
    while True:
        print(event.seq, event.crop.bytes_done if event.crop else 0, flush=True)
        crop = crop.model_copy(update={"bytes_done": crop.bytes_done + 1})
        event = await store.update_job(name, "crop", State.RUNNING, crop)

asyncio.run(main(*sys.argv[1:]))
"""
OPENER = """
import asyncio, sys
from prismcache_service.store.sql import SqlJobStore

async def main(url):
    sys.stdin.readline()
    store = await SqlJobStore.open(url)
    print(len(await store.jobs()), flush=True)
    await store.aclose()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """The address of an empty database of its own."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/state/jobs.sqlite"
    return request.getfixturevalue("postgres_server").create_database()


@pytest.fixture
async def opened(url):
    """Open stores at `url`, as many as wanted; closed with the test."""
    stores = []

    async def another() -> SqlJobStore:
        stores.append(await SqlJobStore.open(url))
        return stores[-1]

    yield another
    for store in stores:
        await store.aclose()


def a_job(name: str, crops: tuple[int, ...] = (0,), state: State = State.QUEUED) -> JobRecord:
    request = JobRequest(split=Split.INSTANCE, crops=crops)
    return JobRecord(name, "ann", request, state, tuple(CropProgress(crop=crop) for crop in crops), NOON)


async def test_everything_is_there_after_a_restart(opened):
    store = await opened()
    lease = LeaseRecord("l1", "ann", Split.SEMANTIC, (4, 2), NOON + HOUR)
    await store.add_job(a_job("j1", (3, 1)))
    await store.update_job("j1", "crop", State.RUNNING, CropProgress(crop=1, state=State.DONE))
    await store.put_lease(lease)
    await store.pin(Split.INSTANCE, 3, "ann")
    await store.touch([(Split.INSTANCE, 3)], NOON)
    job, events = await store.job("j1"), await store.events("j1")
    await store.aclose()
    again = await opened()
    assert await again.unfinished_jobs() == [job]
    assert await again.events("j1") == events
    assert await again.leases(NOON) == [lease]
    assert await again.pins() == {(Split.INSTANCE, 3)}
    assert await again.last_used() == {(Split.INSTANCE, 3): NOON}
    last = await again.update_job("j1", "finished", State.DONE)
    assert last.seq > events[-1].seq
    assert await again.forget_jobs(datetime.now(UTC) + HOUR) == 1
    await again.aclose()
    assert (await (await opened()).add_job(a_job("j2"))).seq > last.seq


def killed_writer(url: str, acknowledged: int) -> list[tuple[int, ...]]:
    """What a process was told by the store before it was killed: at least so many times."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, url, "j1"], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    try:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(acknowledged)]
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.readlines()  # it may have got further before the signal came
    finally:
        writer.kill()
        writer.communicate()
    return [tuple(map(int, line.split())) for line in lines if line.endswith("\n")]


@pytest.mark.parametrize("acknowledged", [1, 2, 15])
async def test_what_was_acknowledged_survives_kill_9(url, opened, acknowledged):
    told = killed_writer(url, acknowledged)
    assert len(told) >= acknowledged
    store = await opened()
    [job] = await store.unfinished_jobs()
    kept = [(event.seq, event.crop.bytes_done if event.crop else 0) for event in await store.events("j1")]
    assert kept[: len(told)] == told
    assert len(kept) - len(told) <= 1  # committed, but not yet told
    assert (job.last_event, job.crops[0].bytes_done) == kept[-1]


async def test_two_services_share_a_database(opened):
    one, two = await opened(), await opened()
    crops = tuple(range(20))
    await one.add_job(a_job("j1", crops))
    updates = [
        store.update_job("j1", "crop", State.RUNNING, CropProgress(crop=crop, state=State.DONE))
        for crop in crops
        for store in (one, two)
    ]
    recorded = await asyncio.gather(*updates)
    assert await one.jobs() == await two.jobs()
    seqs = [event.seq for event in await two.events("j1")]
    assert len(seqs) == 41
    assert seqs[1:] == sorted({event.seq for event in recorded})
    assert {crop.state for crop in (await two.job("j1")).crops} == {State.DONE}


async def test_two_services_see_each_others_leases_pins_and_uses(opened):
    one, two = await opened(), await opened()
    crops = [(Split.INSTANCE, crop) for crop in range(50)]
    await asyncio.gather(
        *(store.touch(order, NOON) for store, order in ((one, crops), (two, crops[::-1])) for _ in range(5)),
        *(store.pin(Split.INSTANCE, 1, "ann") for store in (one, two) for _ in range(5)),
        *(
            store.put_lease(LeaseRecord("l1", owner, Split.INSTANCE, (1,), NOON))
            for store, owner in ((one, "ann"), (two, "bob")) for _ in range(5)
        ),
    )  # fmt: skip
    assert len(await one.last_used()) == 50
    assert await two.pins() == {(Split.INSTANCE, 1)}
    assert await one.lease("l1") == await two.lease("l1") is not None
    assert await one.drop_lease("l1")
    assert await two.lease("l1") is None


def test_services_that_start_at_once_on_an_empty_database(url):
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=dict(os.environ),
        )
        for _ in range(3)
    ]  # fmt: skip
    try:
        for starter in starters:
            assert starter.stdin is not None
            starter.stdin.write("go\n")
            starter.stdin.flush()
        said = [starter.communicate(timeout=60) for starter in starters]
    finally:
        for starter in starters:
            starter.kill()
            starter.wait()
    assert said == [("0\n", "")] * 3


async def test_a_closed_store_says_so(opened):
    store = await opened()
    adding = asyncio.ensure_future(store.add_job(a_job("j1")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await store.aclose()
    assert (await adding).seq > 0  # what had begun was finished
    for call in (store.job("j1"), store.add_job(a_job("j2")), store.check()):
        with pytest.raises(StorageError, match="closed"):
            await call
    assert len(await (await opened()).jobs()) == 1


async def test_the_same_job_twice_is_refused(opened):
    store = await opened()
    await store.add_job(a_job("j1"))
    with pytest.raises(StorageError, match="job store"):
        await store.add_job(a_job("j1"))
    assert len(await store.events("j1")) == 1


async def test_rows_that_cannot_be_read_are_left_out(url, opened, caplog):
    store = await opened()
    for name in ("good", "request", "crop", "state"):
        await store.add_job(a_job(name, (1, 2)))
    await store.pin(Split.INSTANCE, 1, "ann")
    await store.put_lease(LeaseRecord("l1", "ann", Split.INSTANCE, (1,), NOON + HOUR))
    await execute(
        url,
        "UPDATE jobs SET request = '{}' WHERE id = 'request'",
        "UPDATE jobs SET state = 'dreaming' WHERE id = 'state'",
        "UPDATE job_crops SET progress = '{\"crop\": 2' WHERE job_id = 'crop' AND crop = 2",
        "UPDATE events SET state = 'dreaming' WHERE job_id = 'state'",
        "UPDATE leases SET crops = '7'",
        "UPDATE pins SET split = 'no split!'",
    )
    assert [job.id for job in await store.unfinished_jobs()] == ["good"]
    assert await store.job("crop") is None
    assert (await store.events("state"), await store.leases(NOON), await store.pins()) == ([], [], set())
    assert "a job in the job store cannot be read and is left out (request)" in caplog.text


async def execute(url: str, *statements: str) -> None:
    engine = make_engine(parse_url(url))
    async with engine.execution_options(**{WRITES: True}).begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))
    await engine.dispose()


async def with_connection(url: str, work) -> object:
    engine = make_engine(parse_url(url), migrating=True)
    try:
        async with engine.execution_options(**{WRITES: True}).begin() as connection:
            return await connection.run_sync(work)
    finally:
        await engine.dispose()


def differences(connection) -> list:
    return compare_metadata(MigrationContext.configure(connection), metadata)


def shape(connection) -> dict:
    """The schema with what alembic does not compare: keys, cascades and indexes."""
    found = inspect(connection)
    return {
        name: (
            found.get_pk_constraint(name)["constrained_columns"],
            [(key["name"], key["constrained_columns"], key["options"]) for key in found.get_foreign_keys(name)],
            sorted((index["name"], index["column_names"]) for index in found.get_indexes(name)),
            [(column["name"], column["nullable"]) for column in found.get_columns(name)],
        )
        for name in found.get_table_names()
        if name != "alembic_version"
    }


async def test_the_migrations_make_the_tables_as_declared_and_print_nothing(opened, url, request, tmp_path, capfd):
    await opened()
    assert capfd.readouterr() == ("", "")
    assert await with_connection(url, differences) == []
    if url.startswith("sqlite"):
        declared = f"sqlite+aiosqlite:///{tmp_path}/declared.sqlite"
    else:
        declared = request.getfixturevalue("postgres_server").create_database()
    await with_connection(declared, metadata.create_all)
    assert await with_connection(url, shape) == await with_connection(declared, shape) != {}


async def test_down_and_up_again(opened, url):
    store = await opened()
    await store.add_job(a_job("j1"))
    await store.aclose()
    await with_connection(url, lambda connection: migrations.downgrade(connection, "base"))
    assert await with_connection(url, shape) == {}
    store = await opened()
    assert await with_connection(url, differences) == []
    assert (await store.add_job(a_job("j1"))).seq > 0


async def test_a_failing_migration_leaves_nothing_behind(opened, url):
    await (await opened()).aclose()
    await with_connection(url, lambda connection: migrations.downgrade(connection, "base"))
    await execute(url, "CREATE TABLE uses (at int)")  # the last that the migration makes
    with pytest.raises((ConfigError, StorageError), match="already exists"):
        await opened()
    assert list(await with_connection(url, shape)) == ["uses"]


async def test_a_newer_schema_is_refused(opened, url):
    await (await opened()).aclose()
    await execute(url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigError, match="not known to this version") as caught:
        await SqlJobStore.open(url)
    assert "upgrade" in caught.value.remedy


class TestPostgresqlAlone:
    @pytest.fixture
    def url(self, postgres_server):
        return postgres_server.create_database()

    async def test_a_restart_of_the_server_costs_no_request(self, opened, postgres_server):
        store = await opened()
        await asyncio.gather(*(store.check() for _ in range(5)))
        postgres_server.restart()
        await store.check()
        assert (await store.add_job(a_job("j1"))).seq > 0

    async def test_sessions_ended_by_an_administrator_are_replaced(self, opened, postgres_server):
        store = await opened()
        await store.add_job(a_job("j1"))
        postgres_server.run_sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        assert (await store.update_job("j1", "crop", State.RUNNING)).seq > 0

    @pytest.mark.parametrize(
        ("change", "kind", "reason"),
        [
            (("@/prism", "@/nowhere"), ConfigError, "does not exist"),
            (("prismcache@", "nobody:secret@"), ConfigError, "does not exist"),
            (("?host=", "?host=/nowhere"), StorageError, "nowhere|No such file|Connect call failed"),
        ],
        ids=["database", "user", "server"],
    )
    async def test_what_cannot_be_reached_is_named(self, url, change, kind, reason):
        with pytest.raises(kind, match=reason) as caught:
            await SqlJobStore.open(url.replace(*change))
        assert "secret" not in str(caught.value) + caught.value.remedy

    async def test_a_read_only_database_is_named(self, opened, url):
        await (await opened()).aclose()
        name = url.split("/")[3].split("?")[0]
        await execute(url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        with pytest.raises(StorageUnwritableError, match="read-only"):
            await (await opened()).add_job(a_job("j1"))
