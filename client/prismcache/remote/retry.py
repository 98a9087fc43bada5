"""When a request is sent again, and after how long: full-jitter back-off with tenacity, bounded in time.

This is the only retry layer of the client; the HTTP library makes one attempt each time.
"""

from __future__ import annotations

import email.utils
import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime

import anyio
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from prismcache.errors import PrismError, ServiceUnreachableError

_log = logging.getLogger("prismcache")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to go on sending a request.

    Attributes
    ----------
    silence
        Seconds without any response before the service counts as unreachable.
    whole
        Seconds in all, also where the service responds but only says "later".
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
"""For requests that are better left out than waited for."""


class AttemptFailedError(Exception):
    """One attempt that brought no usable response.

    Attributes
    ----------
    error
        The error to raise if no further attempt succeeds.
    may_pass
        Whether a further attempt may succeed.
    retry_after
        Seconds that the service asks to wait, if it does.
    was_sent
        Whether the service may have received the request.
    """

    def __init__(
        self, error: PrismError, *, may_pass: bool, retry_after: float | None = None, was_sent: bool = True
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.may_pass = may_pass
        self.retry_after = retry_after
        self.was_sent = was_sent


def retrying(patience: Patience) -> AsyncRetrying:
    """Return a new tenacity loop that repeats an attempt while it fails with an error that may pass.

    Parameters
    ----------
    patience
        The bounds. A ``Retry-After`` that exceeds them ends the loop at once.

    Raises
    ------
    AttemptFailedError
        By the loop: the last failure, when the bounds are reached or the failure cannot pass.
    """
    budget = _Budget(patience)
    return AsyncRetrying(
        retry=retry_if_exception(lambda error: isinstance(error, AttemptFailedError) and error.may_pass),
        wait=budget.delay,
        stop=budget.is_spent,
        sleep=anyio.sleep,
        before_sleep=lambda state: _log.debug("%s: trying again in %.1f s", _failure_of(state), state.upcoming_sleep),
        reraise=True,
    )


def start_over(state: RetryCallState) -> None:
    """Count attempts and time from now on, since the service has just sent something new."""
    state.attempt_number = 1
    state.start_time = time.monotonic()


class _Budget:
    """Computes the delay before the next attempt, and whether the time for attempts is over."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._jitter = wait_random_exponential(multiplier=patience.base, max=patience.cap)
        self._silent_since: float | None = None

    def delay(self, state: RetryCallState) -> float:
        """Return the seconds to wait; called by tenacity before `is_spent`."""
        failure, jitter = _failure_of(state), self._jitter(state)
        if state.attempt_number == 1 or not isinstance(failure.error, ServiceUnreachableError):
            self._silent_since = None
        if isinstance(failure.error, ServiceUnreachableError) and self._silent_since is None:
            self._silent_since = state.start_time if state.attempt_number == 1 else time.monotonic()
        if failure.retry_after is not None:
            return failure.retry_after + jitter
        return max(0.0, min(jitter, self._left(state)))  # so that the last attempt is made when the time ends

    def is_spent(self, state: RetryCallState) -> bool:
        """Return whether no further attempt fits into the time."""
        left = self._left(state)
        return left <= 0 or (_failure_of(state).retry_after or 0.0) > left

    def _left(self, state: RetryCallState) -> float:
        now = time.monotonic()
        left = self._patience.whole - (now - state.start_time)
        if self._silent_since is not None:
            left = min(left, self._patience.silence - (now - self._silent_since))
        return left


def _failure_of(state: RetryCallState) -> AttemptFailedError:
    failure = None if state.outcome is None else state.outcome.exception()
    if not isinstance(failure, AttemptFailedError):
        raise TypeError("only failed attempts are retried")
    return failure


def parse_retry_after(text: str | None, now: datetime | None = None) -> float | None:
    """Return the seconds that a ``Retry-After`` header gives, as a number or as a date; None for anything else.

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
