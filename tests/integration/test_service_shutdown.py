"""How a real service ends in peace, and what the next one goes on with."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.cache_root import Lab, tiny_spec, unfinished
from tests.support.faults import Stall
from tests.support.labs import running_lab
from tests.support.processes import eventually, workers_of
from tests.support.service import Service, service_config
from tests.support.service_jobs import Desk, are_right


def _service(lab: Lab, tmp_path: Path) -> Service:
    return Service(service_config(lab.settings(), tmp_path / "state", min_free_bytes=0))


def test_a_shutdown_with_a_stream_a_poll_and_a_job_takes_less_than_5_s_and_the_job_goes_on(tmp_path: Path) -> None:
    with running_lab(tmp_path, [tiny_spec(0)]) as lab, _service(lab, tmp_path) as service:
        stall = Stall()
        lab.proxy.add(stall, key="labels/0.0.0")
        with Desk(service) as desk:
            job = desk.submit(0)
            lab.proxy.wait_until(lambda proxy: any("/labels/0" in seen.key for seen in proxy.requests), timeout=30)
        workers = workers_of(service.pid)
        with (
            _asked(service, f"/v1/jobs/{job.id}/events") as stream,
            _asked(service, f"/v1/jobs/{job.id}?wait=60") as poll,
        ):
            assert b"event: submitted" in _until(stream, b"submitted")
            time.sleep(0.3)  # for the poll to be waiting; there is no sign of it from outside
            began = time.monotonic()
            assert service.terminate() == 0
            assert time.monotonic() - began < 5
            assert b'"state":"running"' in _until(poll, b"")
        for worker in workers:
            worker.wait()
        assert unfinished(lab.root) == []
        stall.release()
        lab.proxy.clear()
        service.start()
        with Desk(service) as desk:
            assert are_right(desk.ended(job.id))


@contextmanager
def _asked(service: Service, path: str) -> Iterator[socket.socket]:
    """A connection on which that request was sent."""
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 15) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        yield connection


def _until(connection: socket.socket, sign: bytes) -> bytes:
    """What comes until `sign` is in it; with an empty one, until the other side closes."""
    received = b""
    while not (sign and sign in received) and (part := connection.recv(65536)):
        received += part
    return received


def test_sighup_makes_new_tokens_valid_without_a_restart(tmp_path: Path) -> None:
    with running_lab(tmp_path, [tiny_spec(0)]) as lab:
        service = _service(lab, tmp_path)
        first = service.create_token("ada", "requester")
        with service:
            pid = service.pid
            second = service.create_token("bob", "reader")
            with Desk(service, first) as ada, Desk(service, second) as bob:
                job = ada.submit(0)
                assert bob.http.get(f"/v1/jobs/{job.id}").status_code == 401
                service.send(signal.SIGHUP)
                eventually(lambda: bob.http.get(f"/v1/jobs/{job.id}").status_code == 200, "the new token is known")
                assert bob.http.post("/v1/jobs", json={"split": "instance", "crops": [0]}).status_code == 403
                assert ada.ended(job.id).owner == "ada"
            assert (service.pid, service.is_running) == (pid, True)
