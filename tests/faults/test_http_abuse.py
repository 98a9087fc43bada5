"""Whatever bytes come in: a 4xx or a closed connection, bounded memory, and everybody else is served."""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from prismcache.config import Settings
from prismcache_service.web.server import HEADER_SECONDS, MAX_CONNECTIONS_OF_ADDRESS
from tests.support.processes import eventually
from tests.support.service import Service, service_config

MB = 1_000_000
BODY_HEAD = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def _settings(folder: Path) -> Settings:
    return Settings.load({}, root=folder / "root", s3_endpoint_url="http://127.0.0.1:9", s3_object_timeout=0.2)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("http_abuse")
    (folder / "secret").write_text("hunter2")
    with Service(service_config(_settings(folder), folder / "state")) as started:
        yield started
        assert "Traceback" not in started.log


@pytest.fixture(autouse=True)
def still_served(service: Service) -> Iterator[None]:
    """After each test the service responds, and has not grown."""
    before = _peak_memory(service)
    yield
    with service.client() as http:
        assert http.get("/healthz").status_code == 200
    assert _peak_memory(service) - before < 30 * MB


def _peak_memory(service: Service) -> int:
    status = Path(f"/proc/{service.pid}/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))


def _connect(service: Service) -> socket.socket:
    host, port = service.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), 20)


def _response(service: Service, sent: bytes) -> bytes:
    """What comes back until the connection closes or nothing more comes; the request asks for closing."""
    with _connect(service) as connection:
        connection.sendall(sent)
        return _read(connection)


def _read(connection: socket.socket) -> bytes:
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    "path",
    [
        "/../../secret", "/v1/crops/instance/../../../../secret", "/v1/crops/..%2f..%2f..%2fsecret/0/file",
        "/v1/crops/instance/..%2f..%2fsecret/file", "/v1/crops/instance/0%00/file", "/v1/crops/instance/0/file%00",
        "/v1/crops/instance%2f0/../secret", "/%2e%2e/%2e%2e/secret", "//secret", "/v1//crops",
        "/v1/crops/instance/0/file/",
        "/v1/crops/instance/%ff%fe", "/v1/jobs/%0d%0aSet-Cookie:x", "/v1/jobs/..%2f..%2fsecret",
        "/v1/crops/instance/0/file?channels=..%2f..%2fsecret", "/" + "a" * 8000, "/%", "/%zz", "*",
        "http://evil.com/v1/jobs", "/v1/crops/instance/0/file?channels=0%00", "/docs/../../secret",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_api(service: Service, path: str) -> None:
    response = _response(service, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())

    assert response.split()[1] in {b"400", b"404", b"422"}, response
    assert b"application/problem+json" in response
    assert b"hunter2" not in response
    assert b"\r\nset-cookie" not in response.lower()


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xff" * 20 + b"\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", BODY_HEAD + b"Content-Length: -1\r\n\r\n",
        BODY_HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx", BODY_HEAD + b"Content-Length: 1e9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        BODY_HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", BODY_HEAD + b"Transfer-Encoding: gzip\r\n\r\n",
    ],
    ids=lambda sent: repr(sent[-24:]),
)  # fmt: skip
def test_what_is_no_http_is_refused_and_the_connection_closed(service: Service, sent: bytes) -> None:
    response = _response(service, sent)

    # An empty response is a reset: the rest of what was sent arrived after the connection was closed.
    assert not response or response.split()[1] in {b"400", b"403", b"431"}, response[:200]


def test_a_body_with_two_ways_to_tell_its_end_is_refused_and_what_follows_is_no_request(service: Service) -> None:
    smuggled = b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = f"Content-Length: {len(smuggled)}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()

    response = _response(service, BODY_HEAD + head + smuggled)

    assert response.startswith(b"HTTP/1.1 400 ")
    assert response.count(b"HTTP/1.1") == 1
    assert b"connection: close" in response.lower()
    assert b"application/problem+json" in response


def test_idle_connections_of_one_address_leave_room_for_others(service: Service) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536), hard))
    try:
        with contextlib.ExitStack() as stack:
            idle = [stack.enter_context(_connect(service)) for _ in range(MAX_CONNECTIONS_OF_ADDRESS + 1)]
            with contextlib.suppress(ConnectionError):
                assert idle[-1].recv(1) == b""  # closed at once
            host, port = service.url.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port)), 20, source_address=("127.0.0.2", 0)) as other:
                other.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                assert _read(other).startswith(b"HTTP/1.1 200 ")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def is_served() -> bool:
        with contextlib.suppress(httpx2.TransportError), service.client() as http:
            return http.get("/healthz").status_code == 200
        return False

    eventually(is_served, "the address is served again")


def test_a_hundred_megabytes_are_refused_by_their_announcement(service: Service) -> None:
    response = _response(service, BODY_HEAD + b"Content-Length: 100000000\r\n\r\n")

    assert response.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in response.lower()


@pytest.mark.parametrize("head", [b"Content-Length: 100000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"])
def test_a_body_without_end_is_not_read(service: Service, head: bytes) -> None:
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    sent = 0
    with _connect(service) as connection:
        connection.sendall(BODY_HEAD + head)
        with contextlib.suppress(ConnectionError):
            while sent < 100 * MB:
                connection.sendall(chunk)
                sent += len(chunk)

    assert sent < 30 * MB  # what socket buffers hold


def test_a_small_body_is_read_however_it_is_cut(service: Service) -> None:
    body = b'{"split": "indoor"}'
    chunks = b"".join(b"1\r\n" + body[n : n + 1] + b"\r\n" for n in range(len(body))) + b"0\r\n\r\n"

    response = _response(service, BODY_HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)

    assert response.startswith(b"HTTP/1.1 422 ")
    assert b"unknown_split" in response


@pytest.mark.slow
def test_slow_heads_bodies_and_silence_are_cut_off(service: Service) -> None:
    """Three clients at once, each a byte a second or none; each is cut off by one deadline that bytes do not renew."""

    def drip(start: bytes) -> float:
        began = time.monotonic()
        with _connect(service) as connection:
            connection.sendall(start)
            connection.settimeout(1.0)
            while time.monotonic() - began < 3 * HEADER_SECONDS:
                try:
                    if start:
                        connection.sendall(b"x")
                    if connection.recv(1000) == b"":
                        break
                except TimeoutError:
                    continue
                except ConnectionError:
                    break
        return time.monotonic() - began

    starts = [b"", b"GET / HTTP/1.1\r\nX: ", BODY_HEAD + b"Content-Length: 1000\r\n\r\n"]
    with ThreadPoolExecutor(3) as pool:
        seconds = list(pool.map(drip, starts))

    assert all(0.8 * HEADER_SECONDS < taken < 2 * HEADER_SECONDS for taken in seconds), seconds


def test_pipelined_requests_get_their_responses_in_order(service: Service) -> None:
    one = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

    response = _response(service, one * 50 + last)

    assert (response.count(b"HTTP/1.1 200 "), response.count(b"HTTP/1.1 404 ")) == (50, 1)


def test_ten_thousand_wrong_tokens_are_refused_and_a_valid_client_works_on(tmp_path: Path) -> None:
    limit = 60
    config = service_config(_settings(tmp_path), tmp_path / "state", failed_auth_limit=limit, rate_limit=10_000)
    service = Service(config)
    token = service.create_token("ada", "reader")

    def guess(batch: int) -> list[int]:
        with _connect(service) as connection:
            request = b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer prism_%d\r\n\r\n" % batch
            found = bytearray()
            for _ in range(5):  # pipelined by the hundred
                connection.sendall(request * 100)
                want = found.count(b"HTTP/1.1 ") + 100
                while found.count(b"HTTP/1.1 ") < want or not found.endswith(b"}"):
                    part = connection.recv(65536)
                    assert part
                    found += part
        return [int(part[:3]) for part in bytes(found).split(b"HTTP/1.1 ")[1:]]

    with service, service.client(token) as http, ThreadPoolExecutor(4) as pool:
        valid: list[httpx2.Response] = []
        guesses = [pool.submit(guess, batch) for batch in range(20)]
        while not all(future.done() for future in guesses):
            valid.append(http.get("/v1/jobs"))
        statuses = [status for future in guesses for status in future.result()]

    assert len(statuses) == 10_000
    assert set(statuses) == {401, 429}
    assert limit <= statuses.count(401) <= 3 * limit  # the count begins anew each minute
    assert len(valid) > 10
    assert {response.status_code for response in valid} == {200}
