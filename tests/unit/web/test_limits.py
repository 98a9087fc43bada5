"""Limits, each with a clock of its own; and bodies that are too long, too slow, or cut off."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from prismcache_service.web.limits import BodyLimit, FailedLogins, RateLimiter, retry_after


class _Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_rate_allows_a_burst_and_then_as_many_as_it_says() -> None:
    clock = _Clock()
    limiter = RateLimiter(10.0, clock)

    assert [limiter.take("ada") for _ in range(20)] == [0.0] * 20
    assert limiter.take("ada") == pytest.approx(0.1)
    assert limiter.take("bob") == 0.0
    clock.now += 0.35
    assert [limiter.take("ada") == 0.0 for _ in range(4)] == [True, True, True, False]


def test_an_amount_is_taken_whole_and_waited_for_afterwards() -> None:
    clock = _Clock()
    limiter = RateLimiter(100.0, clock)

    assert (limiter.take("link", 0.0), limiter.take("link", 500.0)) == (0.0, 0.0)
    assert limiter.take("link", 0.0) == pytest.approx(3.01)
    clock.now += 3.02
    assert limiter.take("link", 0.0) == 0.0


def test_failures_are_counted_by_address_and_forgotten_after_a_minute() -> None:
    clock = _Clock()
    failures = FailedLogins(3, clock)

    assert [failures.note("10.0.0.1") for _ in range(4)] == [0.0, 0.0, 0.0, 60.0]
    clock.now += 59
    assert failures.note("10.0.0.1") == 1.0
    assert failures.note("10.0.0.2") == 0.0
    clock.now += 1
    assert failures.note("10.0.0.1") == 0.0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("unix", "unix", True),
    ],
)
def test_whoever_has_one_ipv6_address_has_its_64_bits(one: str, other: str, same: bool) -> None:
    failures = FailedLogins(1, _Clock())
    failures.note(one)

    assert (failures.note(other) > 0) is same


def test_many_addresses_cost_no_memory() -> None:
    failures = FailedLogins(1, _Clock())
    for n in range(20_000):
        failures.note(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}")

    assert len(failures._windows) == 10_000


def test_retry_after_is_a_whole_second_at_least() -> None:
    assert retry_after(0.001) == {"Retry-After": "1"}
    assert retry_after(1.5) == {"Retry-After": "2"}


class _Exchange:
    """An app behind `BodyLimit`, and a client that sends `messages` and then nothing."""

    def __init__(self, *messages: dict[str, Any], headers: Iterable[tuple[bytes, bytes]], seconds: float = 5.0) -> None:
        self.got: list[bytes] = []
        self.sent: list[dict[str, Any]] = []
        self._messages = list(messages)
        scope = {"type": "http", "method": "POST", "path": "/", "headers": list(headers)}
        asyncio.run(BodyLimit(self._app, max_bytes=10, seconds=seconds)(scope, self._receive, self._send))

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.got.append((await receive())["body"])

    async def _receive(self) -> Any:
        if not self._messages:
            await asyncio.Event().wait()
        return self._messages.pop(0)

    async def _send(self, message: Any) -> None:
        self.sent.append(message)


def _part(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


CHUNKED = [(b"transfer-encoding", b"chunked")]


@pytest.mark.parametrize(
    "exchange",
    [
        lambda: _Exchange(headers=[(b"content-length", b"11")]),
        lambda: _Exchange(*[_part(b"1234")] * 1000, headers=CHUNKED),
    ],
    ids=["announced", "chunked"],
)
def test_a_body_that_is_too_long_is_refused_and_the_connection_closed(exchange: Any) -> None:
    found = exchange()

    assert found.got == []
    assert found.sent[0]["status"] == 413
    assert (b"connection", b"close") in found.sent[0]["headers"]


def test_a_body_that_does_not_arrive_is_refused() -> None:
    found = _Exchange(_part(b"1"), headers=[(b"content-length", b"2")], seconds=0.01)

    assert (found.got, found.sent[0]["status"]) == ([], 408)


def test_a_client_that_leaves_gets_nothing() -> None:
    found = _Exchange(_part(b"1"), {"type": "http.disconnect"}, headers=CHUNKED)

    assert (found.got, found.sent) == ([], [])
