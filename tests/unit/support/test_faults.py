from __future__ import annotations

import dataclasses
import hashlib
import http.client
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.crops import BUCKET, crop_folder, small_spec
from tests.support.faults import (
    Action,
    ChangedObject,
    Delay,
    Empty,
    FaultProxy,
    FlipBit,
    PassOn,
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
    response = request(url)
    assert (response.status, response.body) == (200, content)
    assert response.headers["etag"] == _etag(content)
    head = request(url, method="HEAD")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(content)))
    part = request(url, headers={"Range": "bytes=3-9"})
    assert (part.status, part.body) == (206, content[3:10])
    assert request(f"{url}-none-such").status == 404
    quoted = list_objects(fault_proxy.endpoint, BUCKET, SPEC.prefix + "/")
    plain = list_objects(s3_server.endpoint, BUCKET, SPEC.prefix + "/")
    assert quoted == {key: dataclasses.replace(found, etag=f'"{found.etag}"') for key, found in plain.items()}


def test_if_match_is_honoured(url: str, content: bytes) -> None:
    assert request(url, headers={"If-Match": _etag(content)}).body == content
    response = request(url, headers={"If-Match": '"0123"'})
    assert response.status == 412
    assert b"PreconditionFailed" in response.body


@pytest.mark.parametrize(
    ("status", "code"), [(403, "AccessDenied"), (404, "NoSuchKey"), (500, "InternalError"), (503, "SlowDown")]
)
def test_status(fault_proxy: FaultProxy, url: str, status: int, code: str) -> None:
    fault_proxy.add(Status(status))
    response = request(url)
    assert response.status == status
    assert f"<Code>{code}</Code>".encode() in response.body


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
    response = request(url, headers={"If-Match": _etag(content)})
    assert (response.status, response.body) == (200, change(content))
    assert response.headers["content-length"] == str(len(response.body))
    assert response.headers["etag"] == _etag(content)


def _flipped(body: bytes, at: int, mask: int) -> bytes:
    return body[:at] + bytes([body[at] ^ mask]) + body[at + 1 :]


def test_changed_object(fault_proxy: FaultProxy, url: str, content: bytes) -> None:
    fault_proxy.add(ChangedObject())
    response = request(url)
    assert (response.body, response.headers["etag"]) == (content[::-1], _etag(content[::-1]))
    assert request(url, headers={"If-Match": _etag(content)}).status == 412
    fault_proxy.clear()
    fault_proxy.add(ChangedObject(b"new"))
    assert request(url, headers={"If-Match": _etag(b"new")}).body == b"new"


def test_stall_until_released(fault_proxy: FaultProxy, url: str, content: bytes) -> None:
    stall = Stall(after=0.5)
    fault_proxy.add(stall)
    with Exchange(url) as response:
        assert response.read(len(content) // 2) == content[: len(content) // 2]
        assert fault_proxy.in_flight == 1
        stall.release()
        assert response.read() == content[len(content) // 2 :]
    assert request(url).body == content


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
