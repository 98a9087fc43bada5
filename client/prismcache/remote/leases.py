"""Leases outlive the call that took them: a thread of the process renews them, whatever its event loops do.

A training run may never come back to an event loop, and `PrismClient().ensure(...)` leaves no client behind; so neither
can be what keeps crops from eviction. A lease that cannot be renewed is no error here: it is tried again.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import httpx2

from prismcache.config import Settings
from prismcache.remote.http import request_headers, service_url
from prismcache.remote.transports import service_at
from prismcache.schema import Lease, LeaseRequest

SHARE = 6
"""A lease is renewed when this part of its life is over; so five renewals may be lost."""

MIN_PERIOD = 0.05
RETRY = 5.0
TIMEOUT = 5.0
FAREWELL = 3.0
"""Seconds that the end of the process waits for leases to be released."""

_log = logging.getLogger("prismcache")


@dataclass(eq=False)
class Held:
    """A lease in use. `owner` is whoever took it, and may let go of it."""

    settings: Settings
    lease: Lease
    owner: object
    due: float
    released: bool = False
    crops: set[int] = field(default_factory=set)


class LeaseKeeper:
    """Renews and releases leases in a daemon thread, which the first lease starts.

    Parameters
    ----------
    clock
        Seconds of a steady clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.pid = os.getpid()
        self._clock = clock
        self._changed = threading.Condition()
        self._held: list[Held] = []
        self._clients: dict[str, httpx2.Client] = {}
        self._thread: threading.Thread | None = None
        self._ending = False

    def keep(self, settings: Settings, lease: Lease, owner: object) -> None:
        """Renew `lease` from now on."""
        with self._changed:
            self._held.append(Held(settings, lease, owner, self._clock() + _period(lease), crops=set(lease.crops)))
            if self._thread is None and not self._ending:
                self._thread = threading.Thread(target=self._run, name="prismcache-leases", daemon=True)
                self._thread.start()
                atexit.register(self.close)
            self._changed.notify_all()

    def release(self, owner: object, crops: Iterable[tuple[str, int]] | None = None) -> None:
        """Let go of all leases of `owner`, or of those whose every crop is among those let go of so far."""
        gone = None if crops is None else set(crops)
        with self._changed:
            for held in self._held:
                if held.owner is owner:
                    split = held.lease.split.value
                    held.crops = {c for c in held.crops if gone is not None and (split, c) not in gone}
                    held.released = held.released or not held.crops
            self._changed.notify_all()

    def take_back(self, owner: object) -> list[tuple[Lease, set[int]]]:
        """Stop keeping the leases of `owner`, which are its own affair now; each with the crops still wanted."""
        with self._changed:
            found = [held for held in self._held if held.owner is owner and not held.released]
            self._held = [held for held in self._held if held not in found]
        return [(held.lease, held.crops) for held in found]

    def hand_over(self, owner: object) -> None:
        """Keep the leases of `owner`, which is no more, until the process ends."""
        with self._changed:
            for held in self._held:
                if held.owner is owner:
                    held.owner = None

    def held(self) -> list[Lease]:
        """The leases that are being kept."""
        with self._changed:
            return [held.lease for held in self._held if not held.released]

    def close(self) -> None:
        """Release everything, within a short time; not in a forked process, since the leases are its parent's."""
        if os.getpid() != self.pid:
            return
        with self._changed:
            self._ending = True
            for held in self._held:
                held.released = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(FAREWELL)

    def _run(self) -> None:
        while True:
            with self._changed:
                now = self._clock()
                due = [held for held in self._held if held.released or held.due <= now]
                if not due:
                    if self._ending:
                        break
                    self._changed.wait(min((held.due - now for held in self._held), default=None))
                    continue
                self._held = [held for held in self._held if not held.released]
            for held in due:
                self._attend(held)
        for client in self._clients.values():
            client.close()

    def _attend(self, held: Held) -> None:
        """Release or renew one lease; whatever fails is tried again, or left to run out."""
        try:
            if held.released:
                self._client(held.settings).delete(f"/v1/leases/{held.lease.id}")
                return
            held.lease = self._renewed(held)
            held.due = self._clock() + _period(held.lease)
        except Exception as error:  # noqa: BLE001 - this is somebody's training run; nothing here may disturb it
            _log.debug("lease %s: %s", held.lease.id, error)
            held.due = self._clock() + min(RETRY, _period(held.lease))

    def _renewed(self, held: Held) -> Lease:
        client = self._client(held.settings)
        answer = client.put(f"/v1/leases/{held.lease.id}")
        if answer.status_code == httpx2.codes.NOT_FOUND:  # it ran out, or the service forgot it
            request = LeaseRequest(split=held.lease.split, crops=tuple(sorted(held.crops)))
            answer = client.post("/v1/leases", content=request.model_dump_json(), headers=_JSON)
        return Lease.model_validate_json(answer.raise_for_status().content)

    def _client(self, settings: Settings) -> httpx2.Client:
        url = service_url(settings)
        key = f"{url} {'' if settings.token is None else hash(settings.token.get_secret_value())}"
        if key not in self._clients:
            service = service_at(url)
            self._clients[key] = httpx2.Client(
                base_url=url,
                headers=request_headers(settings),
                transport=None if service is None else service.for_sync,
                verify=url.startswith("https://"),
                timeout=TIMEOUT,
            )
        return self._clients[key]


_JSON = {"Content-Type": "application/json"}
_keepers: dict[int, LeaseKeeper] = {}


def keeper() -> LeaseKeeper:
    """The keeper of this process; a forked process has one of its own, without leases."""
    return _keepers.setdefault(os.getpid(), LeaseKeeper())


def _period(lease: Lease) -> float:
    return max(MIN_PERIOD, lease.seconds / SHARE)
