"""Retention leases outlive the call that took them: a thread of the process renews them.

A training run may never come back to an event loop, and `PrismClient().ensure(...)` leaves no client behind; so neither
an event loop nor a client can protect crops from eviction. When a renewal fails, the thread tries again.
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
from prismcache.remote.http import service_url, sync_client
from prismcache.schema import Lease, LeaseRequest

SHARE = 6
"""A lease is renewed after this fraction (1/6) of its duration; so five renewals may be lost."""

MIN_PERIOD = 0.05
RETRY = 5.0
TIMEOUT = 5.0
FAREWELL = 3.0
"""Seconds that the end of the process waits for leases to be released."""

_log = logging.getLogger("prismcache")


@dataclass(eq=False)
class Held:
    """A lease in use. `owner` took the lease, and may release it; None is the process."""

    settings: Settings
    lease: Lease
    owner: object
    due: float
    released: bool = False
    crops: set[int] = field(default_factory=set)


class LeaseKeeper:
    """Renews and releases retention leases in a daemon thread, which the first lease starts.

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
        self._clients: dict[tuple[str, int], httpx2.Client] = {}
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
        """Release all leases of `owner`; with `crops`, only the leases whose crops are all given up by now."""
        gone = None if crops is None else set(crops)
        with self._changed:
            for held in self._held:
                if held.owner is owner:
                    split = held.lease.split.value
                    held.crops = {c for c in held.crops if gone is not None and (split, c) not in gone}
                    held.released = held.released or not held.crops
            self._changed.notify_all()

    def take_back(self, owner: object) -> list[tuple[Lease, set[int]]]:
        """Stop renewing the leases of `owner` and return them, each with the crops that are still wanted."""
        with self._changed:
            found = [held for held in self._held if held.owner is owner and not held.released]
            self._held = [held for held in self._held if held not in found]
        return [(held.lease, held.crops) for held in found]

    def hand_over(self, owner: object) -> None:
        """Keep the leases of `owner`, which ends now, until the process ends."""
        with self._changed:
            for held in self._held:
                if held.owner is owner:
                    held.owner = None

    def held(self) -> list[Lease]:
        """Return the leases that are being renewed."""
        with self._changed:
            return [held.lease for held in self._held if not held.released]

    def close(self) -> None:
        """Release everything, within a short time; not in a forked process, since the leases belong to its parent."""
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
        """Release or renew one lease; a renewal that fails is tried again, a release that fails is left to run out."""
        try:
            if held.released:
                self._client(held.settings).delete(f"/v1/leases/{held.lease.id}")
                return
            held.lease = self._renewed(held)
            held.due = self._clock() + _period(held.lease)
        except Exception as error:  # noqa: BLE001 - nothing here may disturb the training run of this process
            _log.debug("lease %s: %s", held.lease.id, error)
            held.due = self._clock() + min(RETRY, _period(held.lease))

    def _renewed(self, held: Held) -> Lease:
        client = self._client(held.settings)
        response = client.put(f"/v1/leases/{held.lease.id}")
        if response.status_code == httpx2.codes.NOT_FOUND:  # it ran out, or the service forgot it
            request = LeaseRequest(split=held.lease.split, crops=tuple(sorted(held.crops)))
            response = client.post("/v1/leases", content=request.model_dump_json(), headers=_JSON)
        return Lease.model_validate_json(response.raise_for_status().content)

    def _client(self, settings: Settings) -> httpx2.Client:
        token = "" if settings.token is None else settings.token.get_secret_value()
        key = (service_url(settings), hash(token))
        if key not in self._clients:
            self._clients[key] = sync_client(settings, TIMEOUT)
        return self._clients[key]


_JSON = {"Content-Type": "application/json"}
_keepers: dict[int, LeaseKeeper] = {}


def keeper() -> LeaseKeeper:
    """Return the keeper of this process; a forked process has its own, without leases."""
    return _keepers.setdefault(os.getpid(), LeaseKeeper())


def _period(lease: Lease) -> float:
    return max(MIN_PERIOD, lease.seconds / SHARE)
