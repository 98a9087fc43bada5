"""The process: where it listens, how it ends, and what a restart keeps."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from prismcache.config import Settings
from prismcache.schema import Job, State
from prismcache_service.web.server import bind
from tests.support.cache_root import Lab, tiny_spec
from tests.support.fault_actions import Stall
from tests.support.labs import running_lab
from tests.support.processes import workers_of
from tests.support.service import Service, service_config

SPEC = tiny_spec(0)
CHUNK = re.compile(r"/labels/\d")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with running_lab(tmp_path, [SPEC]) as running:
        yield running


def _service(lab: Lab, tmp_path: Path, **changes: object) -> Service:
    return Service(service_config(lab.settings(workers=1), tmp_path / "state", min_free_bytes=0, **changes))


def _held_job(lab: Lab, http: httpx2.Client) -> tuple[Job, Stall]:
    """A job that waits for its first chunk."""
    stall = Stall()
    lab.proxy.add(stall, CHUNK)
    job = Job.model_validate(http.post("/v1/jobs", json={"split": "instance", "crops": [0]}).json())
    lab.proxy.wait_until(lambda proxy: any(CHUNK.search(seen.key) for seen in proxy.requests), timeout=30)
    return job, stall


def _open(service: Service, path: str) -> socket.socket:
    """A connection on which that request was sent and the response has begun, if it begins at once."""
    host, port = service.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), 15)
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return connection


def _rest(connection: socket.socket) -> bytes:
    """Everything until the other side closes."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_sigint_ends_streams_polls_and_workers_and_is_a_good_exit(lab: Lab, tmp_path: Path) -> None:
    """With SIGTERM: see test_service_shutdown.py."""
    with _service(lab, tmp_path) as service, service.client() as http:
        job, stall = _held_job(lab, http)
        workers = workers_of(service.pid)
        with (
            _open(service, f"/v1/jobs/{job.id}/events") as stream,
            _open(service, f"/v1/jobs/{job.id}?wait=60") as poll,
        ):
            stream.recv(10)
            time.sleep(0.3)  # for the poll to be waiting; there is no sign of it from outside
            began = time.monotonic()
            service.send(signal.SIGINT)
            streamed, polled = _rest(stream), _rest(poll)
            status = service._ended()
            seconds = time.monotonic() - began
        stall.release()

    assert status == 0
    assert seconds < service.config.shutdown_seconds
    assert streamed.endswith(b"0\r\n\r\n")  # a response in good order, not a broken connection
    assert b'"state":"running"' in polled
    assert workers
    for worker in workers:
        worker.wait()
    assert "Traceback" not in service.log


def test_a_download_that_nobody_reads_does_not_hold_up_a_shutdown(lab: Lab, tmp_path: Path) -> None:
    with _service(lab, tmp_path, shutdown_seconds=3) as service, service.client() as http:
        job = Job.model_validate(http.post("/v1/jobs", json={"split": "instance", "crops": [0]}).json())
        http.get(f"/v1/jobs/{job.id}?wait=20").raise_for_status()
        with _open(service, "/v1/crops/instance/0/file"), _open(service, "/healthz"):
            began = time.monotonic()
            assert service.terminate() in {0, 1}
            assert time.monotonic() - began < 10  # and not for as long as the reader stays


def test_the_address_stays_over_a_restart_and_clients_may_connect_early(lab: Lab, tmp_path: Path) -> None:
    with _service(lab, tmp_path) as service:
        url = service.url
        assert service.log == f"prismcache serves {url}\n"
        service.restart()
        assert service.url == url
        with service.client() as http:
            assert http.get("/healthz").status_code == 200


def test_a_port_that_is_taken_is_said_to_be_in_one_line(lab: Lab, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        service = _service(lab, tmp_path, port=other.getsockname()[1])
        with pytest.raises(RuntimeError, match=r"cannot listen on 127\.0\.0\.1") as caught:
            service.start()

    assert "Traceback" not in str(caught.value)


def test_a_cache_folder_that_cannot_be_used_is_said_to_be(lab: Lab, tmp_path: Path) -> None:
    lab.root.write_text("no folder")

    with pytest.raises(RuntimeError, match="storage_unwritable") as caught:
        _service(lab, tmp_path).start()

    assert "Traceback" not in str(caught.value)


def test_many_clients_are_served_while_a_worker_that_gives_way_makes_a_crop(lab: Lab, tmp_path: Path) -> None:
    with _service(lab, tmp_path) as service, service.client() as http:
        job, stall = _held_job(lab, http)
        states: list[str] = []

        def wait() -> None:
            with service.client() as own:
                found = Job.model_validate(own.get(f"/v1/jobs/{job.id}").json())
                while not found.state.is_final:
                    path = f"/v1/jobs/{job.id}?wait=20&revision={found.revision}"
                    found = Job.model_validate(own.get(path).json())
                states.append(found.state)

        threads = [threading.Thread(target=wait, daemon=True) for _ in range(30)]
        for thread in threads:
            thread.start()
        assert http.get("/healthz").status_code == 200
        _gives_way(service)
        stall.release()
        for thread in threads:
            thread.join(30)

    assert states == [State.DONE] * 30


def _gives_way(service: Service) -> None:
    """Check that the threads of the service's worker run after the API's."""
    [worker] = workers_of(service.pid)
    threads = [int(path.name) for path in Path(f"/proc/{worker.pid}/task").iterdir()]
    assert os.getsid(worker.pid) == worker.pid  # a Ctrl-C in the service's terminal is not for the worker
    own = os.getpriority(os.PRIO_PROCESS, service.pid)
    assert len(threads) > 1
    assert {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads} == {min(19, own + 10)}
    group = Path(f"/proc/{worker.pid}/autogroup")
    assert not group.exists() or group.read_text().split()[-2:] == ["nice", "10"]


def test_python_warnings_and_debug_show_nothing_left_behind(lab: Lab, tmp_path: Path) -> None:
    config = service_config(lab.settings(workers=1), tmp_path / "state", min_free_bytes=0)
    with Service(config, env={"PYTHONWARNINGS": "default::ResourceWarning", "PYTHONASYNCIODEBUG": "1"}) as service:
        with service.client() as http:
            job = Job.model_validate(http.post("/v1/jobs", json={"split": "instance", "crops": [0]}).json())
            with http.stream("GET", f"/v1/jobs/{job.id}/events") as stream:
                stream.read()
            http.get("/v1/crops/instance/0/file").raise_for_status()
            http.get("/v1/crops/instance/0/file", headers={"Range": "bytes=-0"})
        assert service.terminate() == 0

    assert "ResourceWarning" not in service.log
    assert "was never awaited" not in service.log
    assert "Traceback" not in service.log


def test_what_is_loaded_at_the_start_is_left_out_of_garbage_collections(tmp_path: Path) -> None:
    program = (
        "import atexit, gc; from prismcache_service.web import server;"
        " atexit.register(lambda: server.sys.stderr.write(f'left out: {gc.get_freeze_count()}')); server.main()"
    )
    settings = Settings.load({}, root=tmp_path / "root", s3_endpoint_url="http://127.0.0.1:9", s3_object_timeout=0.2)
    with Service(service_config(settings, tmp_path / "state"), command=(sys.executable, "-c", program)) as service:
        assert service.terminate() == 0

    assert int(service.log.rpartition("left out: ")[2]) > 50_000


def test_responses_do_not_wait_for_acknowledgements() -> None:
    with bind("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
