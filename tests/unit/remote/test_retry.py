"""When a service is asked again, and when it is given up."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from prismcache.errors import (
    ServiceBusyError,
    ServiceError,
    ServiceUnreachableError,
    SourceUnreachableError,
    UnauthorizedError,
)
from prismcache.remote.retry import BRIEF, ONCE, Attempts, Patience, Refusal, next_delay, parse_retry_after, refusal_of

SILENT = Refusal(ServiceUnreachableError("no answer"), passing=True)
BUSY = Refusal(ServiceBusyError("later"), passing=True)


def delays(refusals: list[Refusal], patience: Patience, draw: float = 1.0, took: float = 0.0) -> list[float | None]:
    """The delays of a sequence of attempts that each take `took` seconds."""
    now, attempts, found = 0.0, Attempts(), []
    for refusal in refusals:
        now += took
        attempts = attempts.after(refusal, now)
        delay = next_delay(attempts, refusal, patience, now, lambda: draw)
        found.append(delay)
        now += delay or 0.0
    return found


def test_delays_double_up_to_a_cap():
    assert delays([SILENT] * 7, Patience(base=0.25, cap=4.0)) == [0.25, 0.5, 1.0, 2.0, 4.0, 4.0, 4.0]


def test_delays_are_drawn_from_zero_on():
    assert delays([SILENT] * 3, Patience(), draw=0.0) == [0.0, 0.0, 0.0]


def test_silence_ends_on_time_and_the_last_attempt_is_at_the_end():
    found = delays([SILENT] * 100, Patience(silence=60, cap=5))
    spent = sum(delay for delay in found if delay is not None)
    assert spent == pytest.approx(60)
    assert found[-1] is None


def test_any_answer_ends_the_silence():
    patience = Patience(silence=10, whole=1000, base=6, cap=6)
    assert None not in delays([SILENT, BUSY] * 5, patience)
    assert None in delays([SILENT] * 5, patience)


def test_later_for_too_long_is_given_up_too():
    assert delays([BUSY] * 4, Patience(silence=100, whole=3, base=2, cap=2)) == [2, 1.0, None, None]


def test_retry_after_is_waited_for_or_not_at_all():
    asked = Refusal(ServiceBusyError("later"), passing=True, retry_after=7.0)
    assert delays([asked], Patience(whole=10), draw=0.0) == [7.0]
    assert delays([asked], Patience(whole=5), draw=0.0) == [None]


@pytest.mark.parametrize("refusal", [Refusal(UnauthorizedError("no"), passing=False), SILENT])
def test_one_attempt_is_one(refusal):
    assert delays([refusal], ONCE) == [None]


def test_brief_is_brief():
    assert sum(delay or 0.0 for delay in delays([SILENT] * 50, BRIEF)) <= 2.0


@pytest.mark.parametrize(
    ("status", "error", "is_ours", "passing"),
    [
        (429, ServiceBusyError("busy"), True, True),
        (503, ServiceUnreachableError("stopping"), True, True),
        (503, SourceUnreachableError("the bucket"), True, False),  # the service has tried long enough
        (502, ServiceError("proxy"), False, True),
        (503, ServiceError("proxy"), False, True),
        (504, ServiceError("proxy"), False, True),
        (500, ServiceError("?"), False, False),
        (401, UnauthorizedError("no"), True, False),
        (404, ServiceError("?"), False, False),
    ],
)
def test_what_a_status_means(status, error, is_ours, passing):
    assert refusal_of(status, error, is_ours=is_ours, retry_after=3.0) == Refusal(error, passing, 3.0)


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
def test_retry_after_in_all_its_forms(text, seconds):
    assert parse_retry_after(text, datetime(2025, 1, 1, tzinfo=UTC)) == seconds
