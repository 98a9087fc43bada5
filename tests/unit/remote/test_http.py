"""Responses, broken connections and tokens at the border to HTTP."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from contextlib import suppress
from functools import partial
from typing import Any

import httpx2
import pytest

from prismcache import PrismClient
from prismcache.config import Settings
from prismcache.errors import (
    ConfigError,
    EnsureTimeoutError,
    ForbiddenError,
    NoSpaceError,
    PrismError,
    ServiceBusyError,
    ServiceError,
    ServiceUnreachableError,
    UnauthorizedError,
)
from prismcache.progress.reporter import make_reporter
from prismcache.remote import http as _http
from prismcache.remote.api import ServiceApi, follow
from prismcache.remote.http import Connection, is_loopback, is_near, read_as, request_headers
from prismcache.remote.retry import ONCE, Patience
from prismcache.schema import Job, JobEvent, ServiceStatus, VerifyRequest
from tests.support.certificates import HAVE_OPENSSL, make_certificate
from tests.support.fake_backend import job, ready, running
from tests.support.fake_service import FakeService

QUICK = Patience(silence=0.2, whole=0.2, base=0.001, cap=0.01)
SETTINGS = Settings.load({}, url="http://service.invalid/prefix", token="prism_secret")
Reply = httpx2.Response | Exception


def connect(*replies: Reply, patience: Patience = QUICK, seen: list[httpx2.Request] | None = None) -> Connection:
    """A connection to a service that sends these responses in turn, the last one for ever."""
    left = list(replies)

    def response(request: httpx2.Request) -> httpx2.Response:
        if seen is not None:
            seen.append(request)
        reply = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(reply, Exception):
            raise reply
        return reply

    return Connection(SETTINGS, transport=httpx2.MockTransport(response), patience=patience)


def asking(connection: Connection, **options: Any) -> httpx2.Response:
    async def ask() -> httpx2.Response:
        try:
            return await connection.request("GET", "/v1/status", **options)
        finally:
            await connection.aclose()

    return asyncio.run(ask())


def problem(error: PrismError, **headers: str) -> httpx2.Response:
    found = error.to_problem()
    return httpx2.Response(found.status, content=found.model_dump_json(), headers=headers)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (problem(NoSpaceError("full")), NoSpaceError),
        (problem(ForbiddenError("no")), ForbiddenError),
        (httpx2.Response(401), UnauthorizedError),
        (httpx2.Response(403, text="<html>"), ForbiddenError),
        (httpx2.Response(404, json={"detail": "Not Found"}), ServiceError),
        (httpx2.Response(500, text="oops"), ServiceError),
        (httpx2.Response(503, text="proxy"), ServiceUnreachableError),
        (httpx2.Response(429, text="slow down"), ServiceBusyError),
        (httpx2.ConnectError("refused"), ServiceUnreachableError),
        (httpx2.ReadTimeout(""), ServiceUnreachableError),
        (httpx2.RemoteProtocolError("gone"), ServiceUnreachableError),
    ],
)
def test_every_failure_is_an_error_of_ours(reply, kind):
    with pytest.raises(PrismError) as caught:
        asking(connect(reply))
    assert type(caught.value) is kind


def test_a_service_that_only_hangs_up_may_speak_https():
    with pytest.raises(ServiceUnreachableError) as caught:
        asking(connect(httpx2.RemoteProtocolError("Server disconnected")), patience=ONCE)
    assert "has to begin with https://" in caught.value.remedy


def test_a_redirect_is_named_and_not_followed():
    seen: list[httpx2.Request] = []
    reply = httpx2.Response(307, headers={"Location": "https://elsewhere.invalid/v1/status?token=x"})
    with pytest.raises(ServiceError, match=r"redirects to https://elsewhere\.invalid/v1/status, which") as caught:
        asking(connect(reply, seen=seen))
    assert len(seen) == 1
    assert "PRISMCACHE_URL" in caught.value.remedy


def test_a_request_is_sent_again_until_the_service_is_back():
    seen: list[httpx2.Request] = []
    good = httpx2.Response(200, text="{}")
    replies = (
        httpx2.ConnectError("refused"),
        httpx2.Response(502),
        problem(ServiceBusyError("x"), **{"Retry-After": "0"}),
    )
    assert asking(connect(*replies, good, seen=seen)).status_code == 200
    assert len(seen) == 4


def test_a_refusal_is_not_repeated():
    seen: list[httpx2.Request] = []
    with pytest.raises(UnauthorizedError):
        asking(connect(problem(UnauthorizedError("no")), seen=seen))
    assert len(seen) == 1


def test_patience_can_be_for_one_attempt():
    seen: list[httpx2.Request] = []
    with pytest.raises(ServiceUnreachableError, match=r"http://service\.invalid/prefix does not respond: refused"):
        asking(connect(httpx2.ConnectError("refused"), seen=seen), patience=ONCE)
    assert len(seen) == 1


def test_a_response_of_something_else_is_no_traceback():
    response = asking(connect(httpx2.Response(200, text="<html>hello</html>")))
    with pytest.raises(ServiceError, match="is not a ServiceStatus"):
        read_as(ServiceStatus, response)


def test_fields_of_a_newer_service_are_ignored():
    newer = job(ready(0)).model_dump(mode="json") | {"mood": "good"}
    newer["crops"][0] |= {"colour": "blue"}
    assert read_as(Job, asking(connect(httpx2.Response(200, json=newer)))) == job(ready(0))


def test_the_url_may_have_a_path_and_the_token_is_only_in_its_header(caplog):
    caplog.set_level(logging.DEBUG)
    seen: list[httpx2.Request] = []
    asking(connect(httpx2.ConnectError("refused"), httpx2.Response(200, text="{}"), seen=seen))
    assert str(seen[-1].url) == "http://service.invalid/prefix/v1/status"
    assert seen[-1].headers["authorization"] == "Bearer prism_secret"
    assert "prism_secret" not in caplog.text
    assert "prism_secret" not in repr(SETTINGS)


@pytest.mark.parametrize("url", ["http://lab:port", "http://lab\x01"])
def test_an_unusable_url_is_a_config_error(url):
    with pytest.raises(ConfigError, match="unusable"):
        Connection(Settings.load({}, url=url))


def test_a_missing_url_is_a_config_error():
    with pytest.raises(ConfigError, match="no service is set"):
        Connection(Settings.load({}))


def test_a_token_in_the_clear_is_warned_of_once(caplog, monkeypatch):
    monkeypatch.setattr(_http, "_warned", set())
    far = Settings.load({}, url="http://prism.lab:8765", token="prism_secret")
    for settings in (far, far, Settings.load({}, url="https://prism.lab", token="x")):
        request_headers(settings)
    assert caplog.text.count("unencrypted") == 1
    assert "prism_secret" not in caplog.text


@pytest.mark.parametrize(
    ("url", "is_near"),
    [("http://localhost:1", True), ("http://127.3.2.1", True), ("http://[::1]", True), ("http://lab", False)],
)
def test_loopback(url, is_near):
    assert is_loopback(url) is is_near


def test_an_injected_transport_stays_open():
    closed: list[bool] = []

    class Transport(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            return httpx2.Response(200, text="{}")

        async def aclose(self) -> None:
            closed.append(True)

    asking(Connection(SETTINGS, transport=Transport()))
    assert closed == []


# ---- events


def stream(*parts: str) -> httpx2.Response:
    return httpx2.Response(200, text="".join(parts), headers={"Content-Type": "text/event-stream; charset=utf-8"})


def snapshot(value: Job, end: str = "\n") -> str:
    return f"event: job{end}data: {value.model_dump_json()}{end}{end}"


def recorded(seq: int, kind: str = "crop") -> str:
    data = JobEvent(seq=seq, job="job-1", kind=kind, at="2025-01-01T00:00:00Z", state="running").model_dump_json()
    return f"id: {seq}\nevent: {kind}\ndata: {data}\n\n"


def following(connection: Connection) -> list[Job | JobEvent]:
    async def run() -> list[Job | JobEvent]:
        return [message async for message in follow(connection, "/v1/jobs/job-1/events")]

    return asyncio.run(run())


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_events_are_read_until_the_job_is_final(end):
    parts = (": hello" + end + end, snapshot(job(running(0)), end), snapshot(job(ready(0), revision=1), end))
    assert [message.revision for message in following(connect(stream(*parts, snapshot(job(running(0))))))] == [0, 1]


def test_a_broken_stream_goes_on_after_the_last_recorded_event():
    seen: list[httpx2.Request] = []
    first = stream(recorded(3, "submitted"), snapshot(job(running(0))), recorded(4), "event: crop\ndata: {half")
    replies = (
        first,
        httpx2.ConnectError("refused"),
        httpx2.Response(503),
        stream(recorded(5), snapshot(job(ready(0)))),
    )
    messages = following(connect(*replies, seen=seen))
    assert [message.seq for message in messages if isinstance(message, JobEvent)] == [3, 4, 5]
    assert [request.headers.get("last-event-id") for request in seen] == [None, "4", "4", "4"]
    assert seen[0].headers["accept"] == "text/event-stream"


def test_kinds_of_a_newer_service_are_passed_over():
    parts = ("id: 9\nevent: weather\ndata: rain\n\n", snapshot(job(ready(0))))
    assert len(following(connect(stream(*parts)))) == 1


def test_events_that_cannot_be_read_are_an_error():
    with pytest.raises(ServiceError, match="'crop' that cannot be read"):
        following(connect(stream("id: 1\nevent: crop\ndata: [1]\n\n")))


@pytest.mark.parametrize(
    "reply", [httpx2.Response(200, text="<html>"), stream(": nothing\n\n"), httpx2.ConnectError("refused")]
)
def test_a_stream_that_never_comes_is_given_up(reply):
    with pytest.raises(ServiceUnreachableError):
        following(connect(reply))


def test_a_refused_stream_is_not_opened_again():
    seen: list[httpx2.Request] = []
    with pytest.raises(UnauthorizedError):
        following(connect(problem(UnauthorizedError("no")), seen=seen))
    assert len(seen) == 1


# ---- first contact


def failing_with(cause: BaseException) -> httpx2.ConnectError:
    error = httpx2.ConnectError(str(cause))
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("cause", "remedy"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Check the host in PRISMCACHE_URL"),
        (ssl.SSLCertVerificationError("self-signed certificate"), "SSL_CERT_FILE"),
    ],
)
def test_an_error_that_cannot_pass_is_raised_at_once(cause, remedy):
    seen: list[httpx2.Request] = []
    with pytest.raises(ServiceUnreachableError) as caught:
        asking(connect(failing_with(cause), seen=seen))
    assert len(seen) == 1
    assert remedy in caught.value.remedy


@pytest.mark.skipif(not HAVE_OPENSSL, reason="needs openssl")
def test_a_self_signed_certificate_is_known_at_once_and_can_be_trusted(tmp_path, monkeypatch):
    certificate, key = make_certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def main() -> int:
        async with await asyncio.start_server(respond, "127.0.0.1", 0, ssl=context) as server:
            url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            connection = Connection(Settings.load({}, url=url))
            with pytest.raises(ServiceUnreachableError, match="certificate verify failed") as caught:
                await connection.request("GET", "/v1/status")
            assert "SSL_CERT_FILE" in caught.value.remedy
            await connection.aclose()
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
            connection = Connection(Settings.load({}, url=url))
            response = await connection.request("GET", "/v1/status")
            await connection.aclose()
            return response.status_code

    assert asyncio.run(main()) == 200


@pytest.mark.parametrize("listens", [True, False])
def test_a_service_that_is_silent_or_not_there_brings_one_sign_of_life(monkeypatch, caplog, listens):
    monkeypatch.setattr(_http, "SIGN_OF_LIFE", 0.01)

    async def main(url: str) -> None:
        connection = Connection(Settings.load({}, url=url), patience=QUICK)
        with pytest.raises(ServiceUnreachableError):
            await connection.request("GET", "/v1/status", read_timeout=0.2)
        await connection.aclose()

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()  # accepts, and never sends anything
        asyncio.run(main(f"http://127.0.0.1:{silent.getsockname()[1]}"))
    assert caplog.text.count("no response yet, trying for 0.2 s") == 1


def test_a_service_that_goes_away_brings_a_sign_of_life_again(monkeypatch, caplog):
    monkeypatch.setattr(_http, "SIGN_OF_LIFE", 0.01)
    responses = iter([httpx2.Response(200)])

    def handle(_request):
        try:
            return next(responses)
        except StopIteration:
            raise httpx2.ConnectError("refused") from None

    async def main() -> None:
        connection = Connection(
            Settings.load({}, url="http://prism.lab"), transport=httpx2.MockTransport(handle), patience=QUICK
        )
        await connection.request("GET", "/v1/status")
        with pytest.raises(ServiceUnreachableError):
            await connection.request("GET", "/v1/status")
        await connection.aclose()

    asyncio.run(main())
    assert caplog.text.count("no response yet, trying for 0.2 s") == 1


def test_an_ensure_with_a_silent_service_writes_one_line(monkeypatch, caplog, capsys):
    """The connection logs the line; the progress display has one of its own, for embedded use."""
    monkeypatch.setattr(_http, "SIGN_OF_LIFE", 0.01)
    monkeypatch.setattr("prismcache.client.aio.make_reporter", partial(make_reporter, silence=0.01))
    monkeypatch.setattr("prismcache.client.drive.OVERRUN", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = PrismClient(url=f"http://127.0.0.1:{silent.getsockname()[1]}")
        with client, pytest.raises(EnsureTimeoutError):
            client.ensure("instance", 0, timeout=0.5)
    assert (caplog.text + capsys.readouterr().err).count("no response") == 1


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "ftp://127.0.0.1:1"])
def test_a_proxy_that_cannot_be_used_is_a_setting_to_change(monkeypatch, proxy):
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ConfigError, match="a proxy that the environment sets cannot be used") as caught:
        Connection(Settings.load({}, url="http://prism.example.org"))
    assert "ALL_PROXY" in caught.value.remedy


def test_an_error_names_the_proxy_without_its_password(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://user:secret@127.0.0.1:9")
    connection = Connection(Settings.load({}, url="http://prism.example.org"), patience=ONCE)
    with pytest.raises(ServiceUnreachableError, match=r"through the proxy 127\.0\.0\.1:9\) does not") as caught:
        asking(connection)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
def test_no_proxy_is_asked_for_an_address_of_this_machine(monkeypatch, proxy):
    monkeypatch.setenv("ALL_PROXY", proxy)
    with FakeService() as service, service.client() as client:
        assert client.catalog("instance")


@pytest.mark.parametrize(
    ("url", "near"), [("http://192.168.3.4", True), ("http://[fd00::1]", True), ("http://8.8.8.8", False)]
)
def test_private_addresses_are_near(url, near):
    assert is_near(url) is near


@pytest.mark.parametrize(
    ("reply", "count"), [(httpx2.ReadTimeout("slow"), 1), (httpx2.Response(504), 1), (httpx2.ConnectError("no"), 2)]
)
def test_verify_is_not_sent_again_once_the_service_may_have_it(reply, count):
    seen: list[httpx2.Request] = []
    good = httpx2.Response(200, json={"results": []})
    api = ServiceApi(connect(reply, good, seen=seen))

    async def main() -> None:
        with suppress(ServiceUnreachableError):
            assert await api.verify(VerifyRequest()) == []
        await api.aclose()

    asyncio.run(main())
    assert len(seen) == count
