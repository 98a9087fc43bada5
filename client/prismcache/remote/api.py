"""The service's HTTP API v1, one method for each call, typed.

For programs that need more than `prismcache.AsyncPrismClient` offers; `prismcache.remote` and the command line use it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Self, TypeAlias
from urllib.parse import quote

import httpx2
from pydantic import ValidationError

from prismcache.config import Settings
from prismcache.errors import ServiceError, ServiceUnreachableError
from prismcache.links import Link, LinkPage, LinkRequest, MadeLink
from prismcache.remote.http import Connection, Params, raised_as_ours, read_as
from prismcache.remote.retry import BRIEF, AttemptFailedError, Patience, retrying, start_over
from prismcache.schema import (
    ClearedQuarantine,
    CropFile,
    CropInfo,
    CropPage,
    Job,
    JobEvent,
    JobPage,
    JobRequest,
    Lease,
    LeaseRequest,
    RemovedFiles,
    ServiceStatus,
    Split,
    State,
    VerifyReport,
    VerifyRequest,
    VerifyResult,
)

MAX_WAIT = 20.0
"""Seconds of one long poll."""

CLIENT_HEADER = "Prismcache-Client"
"""Tells apart the calls that ask for the same crops with the same token."""

_SLOW = 60.0
_VERIFYING = 3600.0
"""Seconds that reading a full cache again may take."""

Message: TypeAlias = Job | JobEvent

RECORDED = frozenset({"submitted", "resumed", "started", "crop", "finished"})
"""Kinds of events that have an id and are sent again from `Last-Event-ID` on."""


class ServiceApi:
    """Calls to one service; made on the event loop that uses it.

    Every method raises `prismcache.PrismError` classes only, and sends its request again while the service restarts.

    Parameters
    ----------
    service
        A connection, which is closed here, or settings to make one from.

    Examples
    --------
    >>> from prismcache import Settings
    >>> async def jobs_running() -> int:
    ...     async with ServiceApi(Settings(url="http://prism.lab:8765")) as service:
    ...         return (await service.status()).jobs_running
    """

    def __init__(self, service: Connection | Settings) -> None:
        self.connection = Connection(service) if isinstance(service, Settings) else service

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection."""
        await self.connection.aclose()

    async def submit(self, request: JobRequest, *, client: str | None = None, patience: Patience | None = None) -> Job:
        """Start a job, or join the active job for the same request; so sending the request again is safe.

        Parameters
        ----------
        request
            The crops and channels.
        client
            A name for the call (letters, digits and ``-``), to be given to `cancel`.
        patience
            How long to go on trying.
        """
        response = await self.connection.request(
            "POST", "/v1/jobs", body=request, headers=_name(client), read_timeout=_SLOW, patience=patience
        )
        return read_as(Job, response)

    async def jobs(
        self,
        *,
        state: State | None = None,
        split: Split | None = None,
        mine: bool = False,
        cursor: str | None = None,
        limit: int | None = None,
    ) -> JobPage:
        """Return one page of jobs, newest first."""
        given = {"state": state, "split": split, "owner": "me" if mine else None, "cursor": cursor, "limit": limit}
        params: Params = {name: value for name, value in given.items() if value is not None}
        return read_as(JobPage, await self.connection.request("GET", "/v1/jobs", params=params))

    async def job(self, job_id: str) -> Job:
        """Return a job as it is now."""
        return read_as(Job, await self.connection.request("GET", _job(job_id)))

    async def wait(self, job: Job, seconds: float) -> Job:
        """Return a snapshot newer than `job`, or the same again after `seconds`, which are cut to `MAX_WAIT`."""
        seconds = max(0.0, min(seconds, MAX_WAIT))
        params: Params = {"wait": round(seconds, 3), "revision": job.revision}
        response = await self.connection.request("GET", _job(job.id), params=params, read_timeout=seconds + MAX_WAIT)
        return read_as(Job, response)

    def events(self, job_id: str) -> AsyncGenerator[Message]:
        """Yield snapshots and recorded events of a job until it is final, through restarts of the service."""
        return follow(self.connection, f"{_job(job_id)}/events")

    async def cancel(self, job_id: str, *, client: str | None = None, patience: Patience | None = None) -> Job:
        """Cancel a job, or with `client` only that call's wish for the job; crops that another job wants go on."""
        response = await self.connection.request("DELETE", _job(job_id), headers=_name(client), patience=patience)
        return read_as(Job, response)

    async def catalog(
        self, split: Split | None = None, *, refresh: bool = False, patience: Patience | None = None
    ) -> list[CropInfo]:
        """Return every crop that is published or cached."""
        path = "/v1/crops" if split is None else f"/v1/crops/{split.value}"
        params: Params | None = {"refresh": "true"} if refresh else None
        response = await self.connection.request("GET", path, params=params, read_timeout=_SLOW, patience=patience)
        return list(read_as(CropPage, response).crops)

    async def crop(self, split: Split, crop: int, *, patience: Patience | None = None) -> CropInfo:
        """Return one crop in full."""
        path = _crop(split, crop)
        return read_as(CropInfo, await self.connection.request("GET", path, read_timeout=_SLOW, patience=patience))

    async def evict(self, split: Split, crop: int) -> tuple[CropFile, ...]:
        """Delete a crop's files from the service's cache; return those that were there."""
        return read_as(RemovedFiles, await self.connection.request("DELETE", _crop(split, crop))).files

    async def pin(self, split: Split, crop: int) -> CropInfo:
        """Protect a crop from eviction until `unpin`."""
        return read_as(CropInfo, await self.connection.request("PUT", f"{_crop(split, crop)}/pin"))

    async def unpin(self, split: Split, crop: int) -> CropInfo:
        """Allow the eviction of a crop again."""
        return read_as(CropInfo, await self.connection.request("DELETE", f"{_crop(split, crop)}/pin"))

    async def lease(self, request: LeaseRequest) -> Lease:
        """Take a retention lease on crops; tried briefly, since work goes on without the lease."""
        return read_as(Lease, await self.connection.request("POST", "/v1/leases", body=request, patience=BRIEF))

    async def release(self, lease_id: str) -> None:
        """Release a retention lease."""
        await self.connection.request("DELETE", f"/v1/leases/{quote(lease_id, safe='')}", patience=BRIEF)

    async def make_link(self, request: LinkRequest) -> MadeLink:
        """Make a link to one cached crop that needs no token. The request is sent once: each makes another link."""
        return read_as(MadeLink, await self.connection.request("POST", "/v1/links", body=request, repeatable=False))

    async def links(self) -> tuple[Link, ...]:
        """Return the valid links of this token, newest first; for an admin those of all."""
        return read_as(LinkPage, await self.connection.request("GET", "/v1/links")).links

    async def revoke_link(self, link_id: str) -> None:
        """Have the service refuse a link from now on."""
        await self.connection.request("DELETE", f"/v1/links/{quote(link_id, safe='')}")

    async def verify(self, request: VerifyRequest) -> list[VerifyResult]:
        """Have the service read its files again.

        The request is sent once; sent again, it would make the service read its whole cache twice at the same time.
        """
        response = await self.connection.request(
            "POST", "/v1/verify", body=request, read_timeout=_VERIFYING, repeatable=False
        )
        return list(read_as(VerifyReport, response).results)

    async def clear_quarantine(self) -> ClearedQuarantine:
        """Delete the damaged files that the service has set aside."""
        return read_as(ClearedQuarantine, await self.connection.request("DELETE", "/v1/quarantine", read_timeout=_SLOW))

    async def status(self) -> ServiceStatus:
        """Return what the service is doing."""
        return read_as(ServiceStatus, await self.connection.request("GET", "/v1/status"))


def _name(client: str | None) -> dict[str, str]:
    return {} if client is None else {CLIENT_HEADER: client}


def _job(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _crop(split: Split, crop: int) -> str:
    return f"/v1/crops/{split.value}/{crop}"


async def follow(connection: Connection, path: str) -> AsyncGenerator[Message]:
    """Yield every message until a snapshot is final, reconnecting in between.

    Parameters
    ----------
    connection
        To the service.
    path
        Of the job's events.

    Raises
    ------
    PrismError
        If the service refuses, or does not respond for longer than the connection's patience.
    """
    last_id = ""
    with raised_as_ours():
        async for attempt in retrying(connection.patience):
            with attempt:
                headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
                async with connection.stream(path, headers=headers) as response:
                    async for event in httpx2.EventSource(response):
                        last_id = event.id or last_id
                        start_over(attempt.retry_state)
                        message = _read(event)
                        if message is not None:
                            yield message
                        if isinstance(message, Job) and message.state.is_final:
                            return
                # the service ends the stream early when it shuts down
                ended = ServiceUnreachableError(f"the service at {connection.url} ended the stream of events")
                raise AttemptFailedError(ended, may_pass=True)


def _read(event: httpx2.ServerSentEvent) -> Message | None:
    """Return the event's message; None for a kind that this version does not know.

    Raises
    ------
    ServiceError
        If the event's data do not match its kind.
    """
    model = Job if event.event == "job" else JobEvent if event.event in RECORDED else None
    if model is None:
        return None
    try:
        return model.model_validate_json(event.data)
    except ValidationError:
        raise ServiceError(f"the service sent an event {event.event!r} that cannot be read") from None
