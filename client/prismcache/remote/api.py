"""The service's HTTP API v1, one method for each call, typed.

For programs that need more than `prismcache.AsyncPrismClient` offers; `prismcache.remote` and the command line use it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Self
from urllib.parse import quote

from prismcache.config import Settings
from prismcache.remote.events import Message, follow
from prismcache.remote.http import Connection, Params
from prismcache.remote.retry import BRIEF, Patience
from prismcache.schema import (
    ClearedQuarantine,
    CropFile,
    CropInfo,
    CropPage,
    Job,
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
"""Tells apart who asks for the same with the same token."""

_SLOW = 60.0
_VERIFYING = 3600.0
"""Seconds that reading a full cache again may take."""


class ServiceApi:
    """Calls to one service; made on the event loop that uses it.

    Every method raises `prismcache.PrismError` classes only, and asks again while the service restarts.

    Parameters
    ----------
    service
        A connection, which is closed here, or settings to make one from.

    Examples
    --------
    >>> import asyncio
    >>> from prismcache import Settings
    >>> from prismcache.testing import InMemoryService
    >>> async def main(url: str) -> int:
    ...     async with ServiceApi(Settings(url=url)) as service:
    ...         return (await service.status()).jobs_running
    >>> with InMemoryService() as lab:
    ...     asyncio.run(main(lab.url))
    0
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
        """Start or join the work; the same request while its job is active is that job, so asking again is safe.

        Parameters
        ----------
        request
            What is wanted.
        client
            A name for who asks (letters, digits and ``-``), to be given to `cancel`.
        patience
            How long to go on asking.
        """
        answer = await self.connection.ask(
            "POST", "/v1/jobs", body=request, headers=_name(client), read_timeout=_SLOW, patience=patience
        )
        return answer.read(Job)

    async def jobs(
        self,
        *,
        state: State | None = None,
        split: Split | None = None,
        mine: bool = False,
        cursor: str | None = None,
        limit: int | None = None,
    ) -> JobPage:
        """One page of jobs, newest first."""
        given = {"state": state, "split": split, "owner": "me" if mine else None, "cursor": cursor, "limit": limit}
        params: Params = {name: value for name, value in given.items() if value is not None}
        return (await self.connection.ask("GET", "/v1/jobs", params=params)).read(JobPage)

    async def job(self, job_id: str) -> Job:
        """A job as it is now."""
        return (await self.connection.ask("GET", _job(job_id))).read(Job)

    async def wait(self, job: Job, seconds: float) -> Job:
        """A snapshot other than `job`, or the same again after `seconds`, which are cut to `MAX_WAIT`."""
        seconds = max(0.0, min(seconds, MAX_WAIT))
        params: Params = {"wait": round(seconds, 3), "revision": job.revision}
        answer = await self.connection.ask("GET", _job(job.id), params=params, read_timeout=seconds + MAX_WAIT)
        return answer.read(Job)

    def events(self, job_id: str) -> AsyncGenerator[Message]:
        """Snapshots and recorded events of a job until it is final, through restarts of the service."""
        return follow(self.connection, f"{_job(job_id)}/events")

    async def cancel(self, job_id: str, *, client: str | None = None, patience: Patience | None = None) -> Job:
        """Cancel a job, or with `client` only that one's wish for it; what another job wants goes on."""
        answer = await self.connection.ask("DELETE", _job(job_id), headers=_name(client), patience=patience)
        return answer.read(Job)

    async def catalog(self, split: Split | None = None, *, refresh: bool = False) -> list[CropInfo]:
        """Every crop that is published or cached."""
        path = "/v1/crops" if split is None else f"/v1/crops/{split.value}"
        params: Params | None = {"refresh": "true"} if refresh else None
        return list((await self.connection.ask("GET", path, params=params, read_timeout=_SLOW)).read(CropPage).crops)

    async def crop(self, split: Split, crop: int) -> CropInfo:
        """One crop in full."""
        return (await self.connection.ask("GET", _crop(split, crop), read_timeout=_SLOW)).read(CropInfo)

    async def evict(self, split: Split, crop: int) -> tuple[CropFile, ...]:
        """Delete a crop's files from the service's cache; answers those that were there."""
        return (await self.connection.ask("DELETE", _crop(split, crop))).read(RemovedFiles).files

    async def pin(self, split: Split, crop: int) -> CropInfo:
        """Never evict this crop."""
        return (await self.connection.ask("PUT", f"{_crop(split, crop)}/pin")).read(CropInfo)

    async def unpin(self, split: Split, crop: int) -> CropInfo:
        """Let this crop be evicted again."""
        return (await self.connection.ask("DELETE", f"{_crop(split, crop)}/pin")).read(CropInfo)

    async def lease(self, request: LeaseRequest) -> Lease:
        """Protect crops from eviction for a while; with little patience, since work goes on without."""
        return (await self.connection.ask("POST", "/v1/leases", body=request, patience=BRIEF)).read(Lease)

    async def release(self, lease_id: str) -> None:
        """Give a lease up."""
        await self.connection.ask("DELETE", f"/v1/leases/{quote(lease_id, safe='')}", patience=BRIEF)

    async def verify(self, request: VerifyRequest) -> list[VerifyResult]:
        """Have the service read its files again."""
        answer = await self.connection.ask("POST", "/v1/verify", body=request, read_timeout=_VERIFYING)
        return list(answer.read(VerifyReport).results)

    async def clear_quarantine(self) -> ClearedQuarantine:
        """Delete what the service has found wrong and set aside."""
        return (await self.connection.ask("DELETE", "/v1/quarantine", read_timeout=_SLOW)).read(ClearedQuarantine)

    async def status(self) -> ServiceStatus:
        """What the service is doing."""
        return (await self.connection.ask("GET", "/v1/status")).read(ServiceStatus)


def _name(client: str | None) -> dict[str, str]:
    return {} if client is None else {CLIENT_HEADER: client}


def _job(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _crop(split: Split, crop: int) -> str:
    return f"/v1/crops/{split.value}/{crop}"
