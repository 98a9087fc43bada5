"""When a request is sent again, and when the client gives up."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

import pytest

from prismcache.errors import PrismError, ServiceBusyError, ServiceUnreachableError, UnauthorizedError
from prismcache.remote.retry import (
    ONCE,
    AttemptFailedError,
    Patience,
    parse_retry_after,
    retrying,
    start_over,
)


def silent() -> AttemptFailedError:
    return AttemptFailedError(ServiceUnreachableError("no response"), may_pass=True)


def busy(retry_after: float | None = None) -> AttemptFailedError:
    return AttemptFailedError(ServiceBusyError("later"), may_pass=True, retry_after=retry_after)


def attempts(patience: Patience, *failures: AttemptFailedError) -> tuple[int, float]:
    """Fail in these ways in turn, the last one for ever; the number of attempts, and the seconds they took."""
    made = 0

    async def attempt() -> None:
        nonlocal made
        made += 1
        raise failures[min(made, len(failures)) - 1]

    began = time.monotonic()
    with pytest.raises(AttemptFailedError):
        asyncio.run(retrying(patience)(attempt))
    return made, time.monotonic() - began


def test_silence_ends_on_time_and_the_last_attempt_is_at_the_end():
    made, took = attempts(Patience(silence=0.3, whole=60, base=0.01, cap=0.02), silent())
    assert made > 5
    assert 0.25 < took < 5


def test_any_response_ends_the_silence_but_not_the_whole():
    patience = Patience(silence=0.05, whole=0.3, base=0.02, cap=0.02)
    assert attempts(patience, *[silent(), busy()] * 500)[1] > 0.25
    assert attempts(patience, silent())[1] < 0.25


def test_a_retry_after_is_waited_for_or_not_at_all():
    made, took = attempts(Patience(whole=0.5, base=0.001), busy(0.2), busy(60.0))
    assert made == 2
    assert took >= 0.2


@pytest.mark.parametrize(
    ("patience", "failure"),
    [(ONCE, silent()), (ONCE, busy()), (Patience(), AttemptFailedError(UnauthorizedError("no"), may_pass=False))],
)
def test_one_attempt_is_one(patience, failure):
    assert attempts(patience, failure)[0] == 1


def test_news_from_the_service_starts_over():
    async def main() -> int:
        made = 0
        async for attempt in retrying(Patience(silence=0.1, whole=0.1, base=0.03, cap=0.03)):
            with attempt:
                made += 1
                if made == 40:
                    return made
                start_over(attempt.retry_state)
                raise silent()
        raise AssertionError

    assert asyncio.run(main()) == 40


def test_what_is_not_a_failed_attempt_is_raised_at_once():
    async def attempt() -> None:
        raise PrismError("x")

    with pytest.raises(PrismError):
        asyncio.run(retrying(Patience())(attempt))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("-1", None),
        ("1.5", None),
        ("9" * 400, None),
        ("soon", None),
        ("Wed, 01 Jan 2025 00:01:00 GMT", 60.0),
        ("Tue, 31 Dec 2024 23:00:00 GMT", 0.0),
        ("Wed, 01 Jan 2025 00:01:00", 60.0),
    ],
)
def test_a_retry_after_in_all_its_forms(text, seconds):
    assert parse_retry_after(text, datetime(2025, 1, 1, tzinfo=UTC)) == seconds
