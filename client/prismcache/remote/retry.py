"""When to ask a service again, and after how long: pure decisions, full-jitter back-off.

The only retry layer of the client; the HTTP library makes one attempt each time.
"""

from __future__ import annotations

import email.utils
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from prismcache.errors import PrismError, ServiceBusyError, ServiceUnreachableError

_PASSING = frozenset({429, 502, 503, 504})
"""Statuses that may pass: ours with Retry-After, or those of a proxy in front of a service that restarts."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to go on asking.

    Attributes
    ----------
    silence
        Seconds without any answer before the service counts as unreachable.
    whole
        Seconds in all, also where the service answers but only says "later".
    base, cap
        Seconds: the first delay is drawn from 0 to `base`, each further one from twice as much, up to `cap`.
    """

    silence: float = 60.0
    whole: float = 300.0
    base: float = 0.2
    cap: float = 5.0


ONCE = Patience(silence=0.0, whole=0.0)
"""One attempt."""

BRIEF = Patience(silence=2.0, whole=2.0)
"""For what is better left undone than waited for."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An attempt that brought no answer to use.

    Attributes
    ----------
    error
        What to raise if nothing better comes.
    passing
        Whether another attempt may do better.
    retry_after
        Seconds that the service asks to wait, if it does.
    """

    error: PrismError
    passing: bool
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Attempts:
    """What was tried so far: how often, since when, and since when there was no answer at all (None: there was one)."""

    count: int = 0
    since: float = 0.0
    silent_since: float | None = None

    def after(self, refusal: Refusal, now: float) -> Attempts:
        """One more attempt, which failed at `now`."""
        silent = isinstance(refusal.error, ServiceUnreachableError)
        silent_since = now if self.silent_since is None else self.silent_since
        return Attempts(self.count + 1, self.since if self.count else now, silent_since if silent else None)


def next_delay(
    attempts: Attempts, refusal: Refusal, patience: Patience, now: float, draw: Callable[[], float]
) -> float | None:
    """Seconds to wait before the next attempt; None to give up and raise `refusal.error`.

    Parameters
    ----------
    attempts
        All of them, the refused one included.
    refusal
        How the last one ended.
    patience
        The bounds.
    now
        Seconds of a steady clock.
    draw
        A random number of [0, 1).

    Examples
    --------
    >>> from prismcache.errors import ServiceUnreachableError
    >>> refusal = Refusal(ServiceUnreachableError("no answer"), passing=True)
    >>> attempts = Attempts().after(refusal, now=0.0).after(refusal, now=1.0)
    >>> next_delay(attempts, refusal, Patience(), now=1.0, draw=lambda: 0.5)
    0.2
    >>> next_delay(attempts, refusal, Patience(), now=60.0, draw=lambda: 0.5) is None
    True
    """
    if not refusal.passing:
        return None
    left = patience.whole - (now - attempts.since)
    if attempts.silent_since is not None:
        left = min(left, patience.silence - (now - attempts.silent_since))
    if left <= 0:
        return None
    delay = draw() * min(patience.cap, patience.base * 2.0 ** min(attempts.count - 1, 30))
    if refusal.retry_after is None:
        return min(delay, left)
    return refusal.retry_after + delay if refusal.retry_after <= left else None


def refusal_of(status: int, error: PrismError, *, is_ours: bool, retry_after: float | None) -> Refusal:
    """What an answer with an error status means.

    Parameters
    ----------
    status
        The HTTP status.
    error
        The error that it says.
    is_ours
        Whether prismcache said it (a problem with a code), not a proxy on the way.
    retry_after
        Seconds, from the header of that name.

    Notes
    -----
    A 503 of ours may be about the bucket or the disk. The service has tried long enough by then: the caller is told.
    """
    passing = isinstance(error, ServiceBusyError | ServiceUnreachableError) if is_ours else status in _PASSING
    return Refusal(error, passing, retry_after)


def parse_retry_after(text: str | None, now: datetime | None = None) -> float | None:
    """Seconds from a ``Retry-After`` header, which holds seconds or a date; None for anything else.

    Examples
    --------
    >>> parse_retry_after("3"), parse_retry_after("soon"), parse_retry_after(None)
    (3.0, None, None)
    """
    if text is None:
        return None
    if text.strip().isdecimal() and len(text) < 10:
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
