"""The state database is lost or damaged between two runs: the cache folder is the truth, and nothing is made twice.

And one on PostgreSQL, which outlives the service.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prismcache.schema import State
from tests.support.cache_root import Lab, published, tiny_spec
from tests.support.faults import Stall
from tests.support.labs import running_lab
from tests.support.service import Service, service_config
from tests.support.service_jobs import Desk, are_right

if TYPE_CHECKING:
    from tests.support.postgres import PostgresServer

pytest_plugins = ["tests.support.postgres"]

SPECS = [tiny_spec(crop) for crop in range(3)]


def delete(database: Path) -> None:
    for path in database.parent.glob("jobs.sqlite*"):
        path.unlink()


def delete_all_but_its_log(database: Path) -> None:
    database.unlink()


def garble(database: Path) -> None:
    database.write_bytes(b"no database " * 5000)


def overwrite_the_middle(database: Path) -> None:
    content = database.read_bytes()
    database.write_bytes(content[:4096] + b"\xff" * 8192 + content[12288:])


@pytest.fixture(scope="module")
def module_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Crops 0 and 1 are cached, crop 2 is not; the catalog is known."""
    folder = tmp_path_factory.mktemp("lab")
    with running_lab(folder, SPECS) as running:
        with Service(service_config(running.settings(), folder / "state", min_free_bytes=0)) as service:
            with Desk(service) as desk:
                assert are_right(desk.ended(desk.submit(0, 1).id))
            service.terminate()
        yield running


# A killed service leaves its write-ahead log beside the database, one that was stopped does not.
@pytest.mark.parametrize(
    ("damage", "end"),
    [
        (delete, "stopped"),
        (delete_all_but_its_log, "killed"),
        (overwrite_the_middle, "stopped"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_the_service_starts_and_knows_what_is_cached(
    module_lab: Lab, tmp_path: Path, damage: Callable[[Path], None], end: str
) -> None:
    proxy = module_lab.proxy
    service = Service(service_config(module_lab.settings(), tmp_path / "state", min_free_bytes=0))
    with service:
        with Desk(service) as desk:
            desk.http.put("/v1/crops/instance/0/pin").raise_for_status()
            lost = desk.submit(0, 77)  # a job that fails, since 77 is not published, and is stored
            desk.ended(lost.id)
        service.kill() if end == "killed" else service.terminate()
        damage(tmp_path / "state" / "jobs.sqlite")
        proxy.clear()
        service.start()
        with Desk(service) as desk:
            assert desk.http.get("/readyz").json()["checks"]["store"] == "ok"
            assert [bool(desk.crop(crop).files) for crop in range(3)] == [True, True, False]
            job = desk.submit(0, 1)
            assert job.state is State.DONE
            assert are_right(job)
            assert not [key for key in proxy.gets() if "crop_2" not in key]
            # A log alone may bring the whole database back; nothing else can.
            assert desk.http.get(f"/v1/jobs/{lost.id}").status_code in {200, 404}
        assert service.terminate() == 0
    assert published(module_lab.root) == ["instance/crop_0.h5", "instance/crop_1.h5"]


def test_a_new_crop_is_made_after_the_database_was_garbled(module_lab: Lab, tmp_path: Path) -> None:
    own = Lab(module_lab.bucket_dir, module_lab.proxy, tmp_path / "root")
    service = Service(service_config(own.settings(), tmp_path / "state", min_free_bytes=0))
    with service:
        service.terminate()
        garble(tmp_path / "state" / "jobs.sqlite")
        service.start()
        with Desk(service) as desk:
            assert are_right(desk.ended(desk.submit(2).id))
            assert len(desk.http.get("/v1/jobs").json()["jobs"]) == 1


def test_a_job_on_postgresql_completes_after_a_kill(
    module_lab: Lab, tmp_path: Path, postgres_server: PostgresServer
) -> None:
    own = Lab(module_lab.bucket_dir, module_lab.proxy, tmp_path / "root")
    url = postgres_server.create_database()
    stall = Stall()
    own.proxy.clear()
    own.proxy.add(stall, key="labels/0.0.0")
    config = service_config(own.settings(), tmp_path / "state", min_free_bytes=0, database_url=url)
    with Service(config) as service:
        with Desk(service) as desk:
            job = desk.submit(0, 2)
        own.proxy.wait_until(lambda proxy: any("/labels/0" in seen.key for seen in proxy.requests), timeout=30)
        service.kill()
        stall.release()
        own.proxy.clear()
        service.start()
        with Desk(service) as desk:
            assert are_right(desk.ended(job.id))
            stream = desk.http.get(f"/v1/jobs/{job.id}/events").text
    kinds = [line.removeprefix("event: ") for line in stream.splitlines() if line.startswith("event: ")]
    assert kinds[:1] == ["submitted"]
    assert kinds.count("resumed") == 1
    assert kinds[-2:] == ["finished", "job"]
    assert not list((tmp_path / "state").glob("jobs.sqlite*"))
