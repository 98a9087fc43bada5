"""The job store's database: addresses, the disk it may lie on, a damaged file, a full disk."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import event

from prismcache.errors import ConfigError, MissingExtraError, NoSpaceError, StorageError, StorageUnwritableError
from prismcache.schema import CropProgress, JobRequest, Split, State
from prismcache_service.config import ServiceConfig
from prismcache_service.store import database
from prismcache_service.store.base import JobRecord
from prismcache_service.store.database import database_url, parse_url
from prismcache_service.store.local_disk import file_system, is_network, refuse_network_file_system
from prismcache_service.store.sql import SqlJobStore

pytestmark = pytest.mark.anyio

MOUNTS = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw,discard
31 27 0:30 / /lab rw,relatime shared:9 - nfs4 server:/export rw,vers=4.2
32 31 0:31 / /lab/local\\040disk rw - xfs /dev/sdb rw
33 27 0:32 / /mnt/sshfs rw - fuse.sshfs ann@server: rw
34 27 0:33 / /mnt/twice rw - nfs server:/a rw
35 34 254:1 / /mnt/twice rw - ext4 /dev/sdc rw
36 27 0:34 / /mnt/größe rw - cifs //server/share rw
"""


@pytest.fixture
def mounts(tmp_path) -> Path:
    path = tmp_path / "mountinfo"
    path.write_text(MOUNTS, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/", "ext4"), ("/srv/state", "ext4"), ("/lab", "nfs4"), ("/lab/not/there/yet", "nfs4"),
        ("/laboratory", "ext4"), ("/lab/local disk/state", "xfs"), ("/mnt/sshfs/state", "fuse.sshfs"),
        ("/mnt/twice/state", "ext4"), ("/mnt/größe/state", "cifs"), ("/lab/../srv", "ext4"),
    ],
)  # fmt: skip
def test_file_system_of_a_folder(mounts, folder, kind):
    assert file_system(Path(folder), mounts) == kind


def test_an_unknown_file_system_is_not_refused(tmp_path):
    assert file_system(tmp_path, tmp_path / "absent") is None
    refuse_network_file_system(tmp_path, tmp_path / "absent")
    assert file_system(tmp_path)  # where this machine's own table is read


NETWORK = "nfs nfs4 cifs smb3 9p lustre gpfs beegfs ceph glusterfs fuse.sshfs fuse.glusterfs fuse.ceph fuse.s3fs afs"
LOCAL = "ext4 xfs btrfs zfs tmpfs overlay fuseblk fuse.fuse-overlayfs fuse.bindfs"


def test_network_file_systems_are_told_from_local_ones():
    assert [kind for kind in (NETWORK + " " + LOCAL).split() if is_network(kind)] == NETWORK.split()


@pytest.mark.parametrize("through_a_link", [False, True])
def test_shared_storage_is_refused_with_the_reason(tmp_path, mounts, through_a_link):
    folder = Path("/lab/state")
    if through_a_link:
        folder = tmp_path / "state"
        folder.symlink_to("/lab/prism")
    with pytest.raises(ConfigError, match=r"state lies on nfs4, a network file system") as caught:
        refuse_network_file_system(folder, mounts)
    assert "PRISMCACHE_STATE_FOLDER" in caught.value.remedy
    assert "PRISMCACHE_DATABASE_URL" in caught.value.remedy


@pytest.fixture
def shared_storage(monkeypatch, tmp_path) -> Path:
    """A folder that the mount table has on NFS."""
    table = tmp_path / "mountinfo"
    table.write_text(MOUNTS + f"40 27 0:40 / {tmp_path}/lab rw - nfs4 server:/export rw\n", encoding="utf-8")
    check = database.refuse_network_file_system
    monkeypatch.setattr(database, "refuse_network_file_system", lambda folder: check(folder, table))
    return tmp_path / "lab"


def config(tmp_path: Path, **settings: object) -> ServiceConfig:
    return ServiceConfig(root=tmp_path / "cache", **settings)


async def test_default_url(tmp_path):
    state = tmp_path / "state #1 %20?"
    url = database_url(config(tmp_path, state_folder=state))
    assert parse_url(url).database == str(state / "jobs.sqlite")
    assert await jobs_in(url) == 0
    assert [path.name for path in state.iterdir()] == ["jobs.sqlite"]
    assert state.stat().st_mode & 0o077 == 0


async def test_configured_url(tmp_path, shared_storage):
    server = "postgresql+asyncpg://ann@db/prism"
    assert database_url(config(tmp_path, state_folder=shared_storage, database_url=server)) == server


async def test_a_database_file_on_shared_storage_is_refused(tmp_path, shared_storage):
    with pytest.raises(ConfigError, match="nfs4"):
        database_url(config(tmp_path, state_folder=shared_storage))
    with pytest.raises(ConfigError, match="nfs4"):
        await SqlJobStore.open(f"sqlite:///{shared_storage}/jobs.sqlite")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "jobs.sqlite",
        "postgresql://ann:secret@db:port/prism",
        "mysql://ann:secret@db/prism",
        "postgresql+psycopg2://ann:secret@db/prism",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:secret?mode=memory&uri=true",
    ],
)
def test_unusable_urls(url):
    with pytest.raises(ConfigError) as caught:
        parse_url(url)
    assert "secret" not in str(caught.value) + caught.value.remedy
    assert "PRISMCACHE_DATABASE_URL" in caught.value.remedy


def test_postgresql_without_its_driver(monkeypatch):
    monkeypatch.setattr(database, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        parse_url("postgresql://db/prism")
    assert "prismcache[postgres]" in caught.value.remedy


def a_job(name: str = "j1", crops: int = 1) -> JobRecord:
    request = JobRequest(split=Split.INSTANCE)
    progress = tuple(CropProgress(crop=crop) for crop in range(crops))
    return JobRecord(name, "", request, State.QUEUED, progress, datetime.now(UTC))


async def fill(url: str) -> None:
    store = await SqlJobStore.open(url)
    for number in range(20):
        await store.add_job(a_job(f"j{number}", crops=20))
    await store.aclose()


async def jobs_in(url: str) -> int:
    store = await SqlJobStore.open(url)
    try:
        await store.check()
        return len(await store.jobs())
    finally:
        await store.aclose()


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "other":
        content = bytearray(b"no database at all\n" * 1000)
    elif how == "short":
        del content[len(content) // 2 :]
    elif how == "zeros":
        content[4096:] = bytes(len(content) - 4096)
    elif how == "header":
        content[:100] = b"\xff" * 100
    else:
        content[8192:16384] = b"\xa5" * 8192
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["other", "short", "zeros", "header", "pages"])
async def test_a_damaged_file_is_set_aside(tmp_path, caplog, how):
    path = tmp_path / "jobs.sqlite"
    url = f"sqlite:///{path}"
    for number in (1, 2):
        await fill(url)
        damage(path, how)
        damaged = path.read_bytes()
        assert await jobs_in(url) == 0
        assert (tmp_path / f"jobs.sqlite.corrupt-{number}").read_bytes() == damaged
        assert f"{path} is damaged: set aside as jobs.sqlite.corrupt-{number}" in caplog.text


def test_the_log_goes_with_the_damaged_file(tmp_path):
    for name in ("jobs.sqlite", "jobs.sqlite-wal", "jobs.sqlite-shm", "jobs.sqlite.corrupt-1"):
        (tmp_path / name).write_text(name)
    database._set_aside(tmp_path / "jobs.sqlite")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "jobs.sqlite.corrupt-1": "jobs.sqlite.corrupt-1",
        "jobs.sqlite.corrupt-2": "jobs.sqlite",
        "jobs.sqlite.corrupt-2-wal": "jobs.sqlite-wal",
        "jobs.sqlite.corrupt-2-shm": "jobs.sqlite-shm",
    }


@pytest.mark.parametrize("jobs", [20, 0])
async def test_a_sound_or_empty_file_stays(tmp_path, caplog, jobs):
    url = f"sqlite:///{tmp_path}/jobs.sqlite"
    if jobs:
        await fill(url)
    else:
        (tmp_path / "jobs.sqlite").touch()
    assert await jobs_in(url) == jobs
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.sqlite"]
    assert "damaged" not in caplog.text


async def test_a_database_of_another_program_is_left_alone(tmp_path):
    path = tmp_path / "jobs.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE jobs (theirs TEXT)")
    connection.close()
    with pytest.raises((ConfigError, StorageError), match="already exists"):
        await jobs_in(f"sqlite:///{path}")
    assert [entry.name for entry in tmp_path.iterdir()] == ["jobs.sqlite"]


async def test_paths_that_cannot_hold_the_file_are_errors(tmp_path):
    (tmp_path / "jobs.sqlite").mkdir()
    with pytest.raises(StorageUnwritableError, match=r"jobs\.sqlite"):
        await jobs_in(f"sqlite:///{tmp_path}/jobs.sqlite")
    (tmp_path / "state").touch()
    with pytest.raises(StorageError, match="state") as caught:
        await jobs_in(f"sqlite:///{tmp_path}/state/jobs.sqlite")
    assert "PRISMCACHE_STATE_FOLDER" in caught.value.remedy
    assert "cache" not in caught.value.title


async def test_sqlite_keeps_what_it_acknowledges(tmp_path):
    store = await SqlJobStore.open(f"sqlite:///{tmp_path}/jobs.sqlite")
    async with store._writing() as connection:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        found = [(await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one() for name in names]
    await store.aclose()
    assert found == ["wal", 2, 1, 30_000]


async def test_a_file_that_is_taken_away_is_noticed(tmp_path):
    path = tmp_path / "jobs.sqlite"
    store = await SqlJobStore.open(f"sqlite:///{path}")
    await store.check()
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(StorageError, match="removed or replaced"):
        await store.check()
    path.write_bytes(content)
    (tmp_path / "other").touch()  # so that the new file has not, by chance, the old one's number
    with pytest.raises(StorageError, match="removed or replaced"):
        await store.check()
    await store.aclose()


async def test_a_full_disk_is_no_space_and_harms_nothing(tmp_path):
    store = await SqlJobStore.open(f"sqlite:///{tmp_path}/jobs.sqlite")
    await store.add_job(a_job("j1"))
    limit = [40]

    @event.listens_for(store._engine.sync_engine, "begin")
    def _bounded(connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {limit[0]}")

    for _ in range(3):
        with pytest.raises(NoSpaceError, match=r"jobs\.sqlite") as caught:
            await store.add_job(a_job("big", crops=5000))
        assert "Free space" in caught.value.remedy
    assert await store.job("big") is None
    limit[0] = 10_000
    await store.add_job(a_job("big", crops=5000))
    assert [job.id for job in await store.unfinished_jobs()] == ["j1", "big"]
    await store.aclose()


async def test_damage_while_it_runs_asks_for_a_restart(tmp_path):
    path = tmp_path / "jobs.sqlite"
    store = await SqlJobStore.open(f"sqlite:///{path}")
    await store._engine.dispose()
    damage(path, "header")
    with pytest.raises(StorageError) as caught:
        await store.jobs()
    assert "Restart" in caught.value.remedy
    await store.aclose()


async def test_a_writer_elsewhere_is_waited_for_and_then_named(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "_BUSY_S", 0.05)
    path = tmp_path / "jobs.sqlite"
    store = await SqlJobStore.open(f"sqlite:///{path}")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="locked"):
        await store.add_job(a_job())
    assert await store.jobs() == []  # readers do not wait
    other.execute("COMMIT")
    other.close()
    await store.add_job(a_job())
    await store.aclose()
