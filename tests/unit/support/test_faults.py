from __future__ import annotations

import dataclasses
import hashlib
import http.client
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.crops import BUCKET, crop_folder, small_spec
from tests.support.faults import (
    Action,
    Before,
    ChangedObject,
    Delay,
    Drip,
    Empty,
    FaultProxy,
    FlipBit,
    Html,
    PassOn,
    Reply,
    Reset,
    Rewrite,
    Short,
    Stall,
    Status,
    Truncate,
)
from tests.support.raw_http import Exchange, list_objects, request
from tests.support.s3 import S3Server

SPEC = small_spec()
KEY = f"{SPEC.prefix}/raw/0.0.0.0"
OTHER = f"{SPEC.prefix}/labels/0.0.0"


@pytest.fixture(scope="module")
def content(bucket_dir: Path) -> bytes:
    return (crop_folder(bucket_dir, SPEC) / "raw/0.0.0.0").read_bytes()


@pytest.fixture
def url(fault_proxy: FaultProxy) -> str:
    return f"{fault_proxy.endpoint}/{BUCKET}/{KEY}"


def _etag(body: bytes) -> str:
    return f'"{hashlib.md5(body).hexdigest()}"'


def test_without_rules_everything_passes(
    fault_proxy: FaultProxy, s3_server: S3Server, url: str, content: bytes
) -> None:
    answer = request(url)
    assert (answer.status, answer.body) == (200, content)
    assert answer.headers["etag"] == _etag(content)
    head = request(url, method="HEAD")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(content)))
    part = request(url, headers={"Range": "bytes=3-9"})
    assert (part.status, part.body) == (206, content[3:10])
    assert request(f"{url}-none-such").status == 404
    quoted = list_objects(fault_proxy.endpoint, BUCKET, SPEC.prefix + "/")
    plain = list_objects(s3_server.endpoint, BUCKET, SPEC.prefix + "/")
    assert quoted == {key: dataclasses.replace(found, etag=f'"{found.etag}"') for key, found in plain.items()}


def test_listings_can_carry_etags_without_quotes(s3_server: S3Server) -> None:
    with FaultProxy(s3_server.endpoint, quoted_etags=False) as proxy:
        assert list_objects(proxy.endpoint, BUCKET, KEY) == list_objects(s3_server.endpoint, BUCKET, KEY)


def test_requests_are_recorded(fault_proxy: FaultProxy, url: str) -> None:
    list_objects(fault_proxy.endpoint, BUCKET, SPEC.prefix + "/")
    request(url, headers={"If-Match": "x"})
    request(url)
    request(url, method="HEAD")
    listing, first, *_ = fault_proxy.requests
    assert (listing.listing, listing.bucket, listing.key) == (True, BUCKET, SPEC.prefix + "/")
    assert listing.query["list-type"] == "2"
    assert (first.method, first.key, first.headers["if-match"], first.listing) == ("GET", KEY, "x", False)
    assert fault_proxy.gets() == {KEY: 2}
    fault_proxy.clear()
    assert not fault_proxy.requests


def test_if_match_is_honoured(url: str, content: bytes) -> None:
    assert request(url, headers={"If-Match": _etag(content)}).body == content
    answer = request(url, headers={"If-Match": '"0123"'})
    assert answer.status == 412
    assert b"PreconditionFailed" in answer.body


@pytest.mark.parametrize(
    ("status", "code"), [(403, "AccessDenied"), (404, "NoSuchKey"), (500, "InternalError"), (503, "SlowDown")]
)
def test_status(fault_proxy: FaultProxy, url: str, status: int, code: str) -> None:
    fault_proxy.add(Status(status))
    answer = request(url)
    assert answer.status == status
    assert f"<Code>{code}</Code>".encode() in answer.body


def test_reset_before_the_headers(fault_proxy: FaultProxy, url: str) -> None:
    fault_proxy.add(Reset())
    with pytest.raises(ConnectionResetError) as caught:
        request(url)
    assert not isinstance(caught.value, http.client.RemoteDisconnected)  # which is what a close in good order is


def test_reset_within_the_body(fault_proxy: FaultProxy, url: str, content: bytes) -> None:
    fault_proxy.add(Reset(after=0.5))
    with Exchange(url) as response:
        assert response.status == 200
        assert response.headers["Content-Length"] == str(len(content))
        with pytest.raises(ConnectionResetError):
            response.read()


def test_truncated_body(fault_proxy: FaultProxy, url: str, content: bytes) -> None:
    fault_proxy.add(Truncate(after=0.25))
    with Exchange(url) as response:
        assert response.headers["Content-Length"] == str(len(content))
        with pytest.raises(http.client.IncompleteRead) as caught:
            response.read()
    assert caught.value.partial == content[: len(content) // 4]


def test_whole_body_but_for_one_byte(fault_proxy: FaultProxy, url: str, content: bytes) -> None:
    fault_proxy.add(Truncate(after=0.999_999_999))
    with pytest.raises(http.client.IncompleteRead) as caught:
        request(url)
    assert caught.value.partial == content[:-1]


@pytest.mark.parametrize(
    ("action", "change"),
    [
        (Short(0.5), lambda body: body[: len(body) // 2]),
        (Empty(), lambda _: b""),
        (FlipBit(at=0.5, bit=3), lambda body: _flipped(body, len(body) // 2, 8)),
        (FlipBit(at=0.0), lambda body: _flipped(body, 0, 1)),
        (Rewrite(lambda reply: dataclasses.replace(reply, body=b"x")), lambda _: b"x"),
        (Delay(0.001, then=Short(0.0)), lambda _: b""),
        (PassOn(), lambda body: body),
    ],
    ids=["short", "empty", "bit-in-the-middle", "first-bit", "rewritten", "delayed-and-empty", "right"],
)
def test_wrong_bodies_with_the_right_etag(
    fault_proxy: FaultProxy, url: str, content: bytes, action: Action, change: Callable[[bytes], bytes]
) -> None:
    fault_proxy.add(action)
    answer = request(url, headers={"If-Match": _etag(content)})
    assert (answer.status, answer.body) == (200, change(content))
    assert answer.headers["content-length"] == str(len(answer.body))
    assert answer.headers["etag"] == _etag(content)


def _flipped(body: bytes, at: int, mask: int) -> bytes:
    return body[:at] + bytes([body[at] ^ mask]) + body[at + 1 :]


def test_a_flipped_bit_needs_a_place_in_the_body() -> None:
    with pytest.raises(ValueError, match="place"):
        FlipBit(at=1.0)
    assert FlipBit().change(Reply(200, {}, b"")).body == b""


def test_html_page(fault_proxy: FaultProxy, url: str) -> None:
    fault_proxy.add(Html())
    answer = request(url)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.body.startswith(b"<!DOCTYPE html>")


def test_changed_object(fault_proxy: FaultProxy, url: str, content: bytes) -> None:
    fault_proxy.add(ChangedObject())
    answer = request(url)
    assert (answer.body, answer.headers["etag"]) == (content[::-1], _etag(content[::-1]))
    assert request(url, headers={"If-Match": _etag(content)}).status == 412
    fault_proxy.clear()
    fault_proxy.add(ChangedObject(b"new"))
    assert request(url, headers={"If-Match": _etag(b"new")}).body == b"new"


def test_changed_for_good(own_bucket_dir: Path, serve_faulty_s3: Callable[[Path], FaultProxy], content: bytes) -> None:
    proxy = serve_faulty_s3(own_bucket_dir)
    file = own_bucket_dir / BUCKET / KEY
    proxy.add(Before(lambda: file.write_bytes(b"new")), key=KEY, skip=1, times=1)
    url = f"{proxy.endpoint}/{BUCKET}/{KEY}"
    assert request(url).body == content
    assert request(url, headers={"If-Match": _etag(content)}).status == 412
    assert request(url).body == b"new"
    assert list_objects(proxy.endpoint, BUCKET, KEY)[KEY].etag == _etag(b"new")


def test_stall_until_released(fault_proxy: FaultProxy, url: str, content: bytes) -> None:
    stall = Stall(after=0.5)
    fault_proxy.add(stall)
    with Exchange(url) as response:
        assert response.read(len(content) // 2) == content[: len(content) // 2]
        assert fault_proxy.in_flight == 1
        stall.release()
        assert response.read() == content[len(content) // 2 :]
    assert request(url).body == content


def test_a_client_that_leaves_a_stalled_answer_frees_it(fault_proxy: FaultProxy, url: str) -> None:
    fault_proxy.add(Stall())
    with Exchange(url) as response:
        assert response.status == 200
    fault_proxy.wait_until(lambda proxy: proxy.in_flight == 0)


def test_stop_breaks_stalled_answers(s3_server: S3Server, content: bytes) -> None:
    proxy = FaultProxy(s3_server.endpoint).start()
    proxy.add(Stall(after=0.1))
    with Exchange(f"{proxy.endpoint}/{BUCKET}/{KEY}") as response:
        proxy.stop()
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            response.read()
    proxy.stop()
    with pytest.raises(ConnectionRefusedError):
        request(proxy.endpoint)


def test_drip(fault_proxy: FaultProxy, url: str, content: bytes) -> None:
    fault_proxy.add(Drip(interval=0), key="/labels/")
    labels = f"{fault_proxy.endpoint}/{BUCKET}/{SPEC.prefix}/labels/.zattrs"
    with Exchange(labels) as response:
        length = int(response.headers["Content-Length"])
        assert len(response.read()) == length
    fault_proxy.add(Drip(interval=60), key="/raw/")
    with Exchange(url) as response:
        assert response.read(1) == content[:1]


def test_the_first_matching_rule_decides(fault_proxy: FaultProxy, url: str, content: bytes) -> None:
    labels = fault_proxy.add(Status(403), key="/labels/")
    raw = fault_proxy.add(Status(404), key=re.compile(r"raw/0\.0\.0\.0$"), times=2)
    fault_proxy.add(Status(500), key=lambda key: key.endswith("0.0.0.0"))
    assert [request(url).status for _ in range(3)] == [404, 404, 500]
    assert request(f"{fault_proxy.endpoint}/{BUCKET}/{OTHER}").status == 403
    assert (labels.hits, raw.hits) == (1, 2)
    fault_proxy.remove(labels)
    assert request(f"{fault_proxy.endpoint}/{BUCKET}/{OTHER}").status == 200
    fault_proxy.clear()
    assert request(url).body == content


def test_rules_are_for_objects_or_for_listings(fault_proxy: FaultProxy, url: str) -> None:
    fault_proxy.add(Status(503), listing=True)
    assert request(url).status == 200
    assert request(f"{fault_proxy.endpoint}/{BUCKET}?list-type=2").status == 503
    fault_proxy.add(Status(403), method="HEAD")
    assert request(url, method="HEAD").status == 403
    assert request(url).status == 200


def test_probability_depends_on_seed_key_and_try_alone(s3_server: S3Server) -> None:
    def statuses(seed: int) -> list[int]:
        with FaultProxy(s3_server.endpoint) as proxy:
            proxy.add(Status(503), probability=0.5, seed=seed)
            urls = [f"{proxy.endpoint}/{BUCKET}/{key}" for key in (KEY, OTHER)] * 10
            return [request(url).status for url in urls]

    first = statuses(1)
    assert {200, 503} == set(first)
    assert statuses(1) == first
    assert statuses(2) != first


def test_latency_delays_objects_and_not_listings(s3_server: S3Server) -> None:
    with FaultProxy(s3_server.endpoint, latency=0.5) as proxy:
        start = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(request, [f"{proxy.endpoint}/{BUCKET}/{KEY}"] * 8))
        assert 0.5 <= time.monotonic() - start < 4  # at the same time, not one after the other
        assert proxy.max_in_flight > 1
        proxy.latency = 3600
        assert list_objects(proxy.endpoint, BUCKET, KEY)


def test_waiting_for_requests(fault_proxy: FaultProxy, url: str) -> None:
    thread = threading.Thread(target=request, args=(url,))
    thread.start()
    fault_proxy.wait_until(lambda proxy: proxy.gets()[KEY] == 1)
    thread.join()
    with pytest.raises(TimeoutError, match="1 requests"):
        fault_proxy.wait_until(lambda proxy: proxy.gets()[KEY] == 2, timeout=0.01)


def test_a_proxy_that_cannot_reach_its_server_answers_502() -> None:
    with FaultProxy("http://127.0.0.1:1") as proxy:
        assert request(f"{proxy.endpoint}/{BUCKET}/{KEY}").status == 502
