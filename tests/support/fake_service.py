"""A service with the HTTP API v1 but without a bucket, for tests of clients of a service.

Its files are real and small. A job makes one crop each time a client asks for news of it, so tests see progress without
a clock. It is served on a free port of this machine.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeAlias

import httpx2
import uvicorn
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from prismcache import testing
from prismcache.arguments import as_context
from prismcache.errors import (
    CropInUseError,
    CropNotCachedError,
    PrismError,
    RequestError,
    UnauthorizedError,
    UnknownJobError,
    UnknownLeaseError,
)
from prismcache.layout import FileName, cache_state
from prismcache.numbers import parse_channels
from prismcache.remote.api import CLIENT_HEADER
from prismcache.schema import (
    ClearedQuarantine,
    CropFile,
    CropInfo,
    CropPage,
    CropProgress,
    Job,
    JobEvent,
    JobPage,
    JobRequest,
    Lease,
    LeaseRequest,
    Product,
    RemovedFiles,
    ServiceStatus,
    Split,
    Usage,
    VerifyReport,
    VerifyRequest,
)

Key: TypeAlias = tuple[Split, int]
Handler: TypeAlias = Callable[["Lab", Request], Awaitable[BaseModel | Response]]

POLL = 0.005
ROUTES: list[tuple[str, str, Handler]] = []


class Lab(testing.Lab):
    """The crops, jobs, pins and retention leases of a service. Safe to share between threads under its `lock`."""

    def __init__(self, root: Path, crops: Mapping[Key, Any]) -> None:
        super().__init__(root, crops)
        self.pins: set[Key] = set()
        self.leases: dict[str, Lease] = {}
        self.lease_seconds = 300.0
        self.events: list[JobEvent] = []

    def submit(self, request: JobRequest, name: str = "") -> Job:
        job = super().submit(request, name)
        if all(event.job != job.id for event in self.events):
            self._record("submitted", job)
        return job

    def all_jobs(self) -> list[Job]:
        """Return all jobs, newest first."""
        return [job for _, job, _ in reversed(self.jobs.values())]

    def find(self, job_id: str) -> tuple[JobRequest, Job, set[str]]:
        """Return the job whose id begins with `job_id`."""
        found = [each for known, each in self.jobs.items() if known.startswith(job_id)]
        if len(found) != 1:
            raise UnknownJobError(f"there is no job {job_id!r}")
        return found[0]

    def cancel(self, job_id: str, name: str | None = None) -> None:
        """End one call's wish for the job; without a name, every call's."""
        if name is None:
            self.find(job_id)[2].clear()
        super().cancel(job_id, name or "")

    def describe(self, split: Split, crop: int) -> CropInfo:
        info = super().describe(split, crop)
        making = {(job.split, each.crop) for job in self.all_jobs() for each in job.crops if not each.state.is_final}
        changes = {
            "state": cache_state(info.files, is_making=(split, crop) in making),
            "pinned": (split, crop) in self.pins,
            "leases": len(self._leases_of(split, crop)),
        }
        return info.model_copy(update=changes)

    def evict(self, split: Split, crop: int) -> list[CropFile]:
        """Delete a crop's files."""
        if (split, crop) in self.pins or self._leases_of(split, crop):
            raise CropInUseError(f"crop {split.value}/{crop} is pinned or leased")
        return self.remove(split, [crop])

    def lease(self, request: LeaseRequest) -> Lease:
        """Return a new lease."""
        lease = Lease(id=uuid.uuid4().hex, split=request.split, crops=request.crops, seconds=self.lease_seconds)
        return self.leases.setdefault(lease.id, lease)

    def find_file(self, split: Split, wanted: FileName) -> CropFile:
        """Return the cached file of exactly this name."""
        if (split, wanted) not in self.files:
            raise CropNotCachedError(f"crop {split.value}/{wanted.crop} is not cached")
        return self.files[split, wanted]

    def _leases_of(self, split: Split, crop: int) -> list[Lease]:
        return [lease for lease in self.leases.values() if lease.split == split and crop in lease.crops]

    def _change(self, job_id: str, progress: CropProgress) -> Job:
        job = super()._change(job_id, progress)
        self._record("crop", job, progress)
        return job

    def _record(self, kind: str, job: Job, crop: CropProgress | None = None) -> None:
        seq, now = len(self.events) + 1, datetime.now(UTC)
        self.events.append(JobEvent(seq=seq, job=job.id, kind=kind, at=now, state=job.state, crop=crop))
        if job.state.is_final and kind != "finished":
            self._record("finished", job)


class FakeService(testing.InMemoryService):
    """The service of `prismcache.testing`, reached by HTTP, inside its `with` block.

    Attributes
    ----------
    lab
        Its files, jobs, pins and leases.
    requests
        Method and path of every request without a fault, in the order of arrival.
    fault
        Called with each request first; may return another response.
    transport
        The service without a network, for an `httpx2` client or for a wrapper that fails.
    """

    def __init__(self, crops: Mapping[tuple[str, int], Any] | None = None, *, token: str | None = None) -> None:
        super().__init__(crops, token=token)
        self.fault: Callable[[Request], Response | None] = lambda _: None
        self.transport = httpx2.ASGITransport(app=self._checked)

    def __enter__(self) -> Self:
        super().__enter__()
        self._lab = self.lab = Lab(self.root, self._crops)
        self._app = Starlette(
            routes=[Route(path, _endpoint(handler, self.lab), methods=[method]) for method, path, handler in ROUTES],
            exception_handlers={PrismError: _as_problem, ValidationError: _as_problem, HTTPException: _as_problem},
        )
        listener = self._stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(
            self._checked, log_config=None, lifespan="off", interface="asgi3", timeout_graceful_shutdown=1, ws="none"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        self._stack.callback(thread.join, 10)
        self._stack.callback(setattr, server, "should_exit", True)
        return self

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, unless there is a `fault` or another token."""
        request = Request(scope, receive)
        if (instead := self.fault(request)) is not None:
            await instead(scope, receive, send)
            return
        self.requests.append(f"{request.method} {request.url.path}")
        if self._token is not None and request.headers.get("authorization") != f"Bearer {self._token}":
            error = UnauthorizedError("no token, or not a valid one")
            await (await _as_problem(request, error))(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _endpoint(handler: Handler, lab: Lab) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        found = await handler(lab, request)
        return (
            found if isinstance(found, Response) else Response(found.model_dump_json(), media_type="application/json")
        )

    return endpoint


async def _as_problem(_: Request, error: Exception) -> Response:
    problem = (error if isinstance(error, PrismError) else RequestError(str(error))).to_problem()
    return Response(problem.model_dump_json(), problem.status, media_type="application/problem+json")


def _route(method: str, path: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        ROUTES.append((method, path, handler))
        return handler

    return register


def _key(request: Request) -> Key:
    return Split(request.path_params["split"]), int(request.path_params["crop"])


@_route("DELETE", "/v1/quarantine")
async def _clear_quarantine(_lab: Lab, _request: Request) -> BaseModel:
    return ClearedQuarantine(files=0, bytes=0)  # damaged files are written anew in place


@_route("GET", "/v1/status")
async def _status(lab: Lab, _request: Request) -> BaseModel:
    with lab.lock:
        running = [job for job in lab.all_jobs() if not job.state.is_final]
        usage = Usage(
            files=len(lab.files),
            used_bytes=sum(file.size for file in lab.files.values()),
            reserved_bytes=0,
            max_bytes=None,
            min_free_bytes=0,
            free_bytes=10**12,
            total_bytes=2 * 10**12,
        )
    return ServiceStatus(
        version="fake",
        engine="fake",
        workers=1,
        jobs_queued=0,
        jobs_running=len(running),
        crops_queued=0,
        crops_running=sum(1 for job in running for crop in job.crops if not crop.state.is_final),
        usage=usage,
    )


@_route("POST", "/v1/jobs")
async def _submit(lab: Lab, request: Request) -> BaseModel:
    asked = JobRequest.model_validate_json(await request.body())
    with lab.lock:
        return lab.submit(asked, request.headers.get(CLIENT_HEADER, ""))


@_route("GET", "/v1/jobs")
async def _jobs(lab: Lab, request: Request) -> BaseModel:
    asked = request.query_params
    state, split = asked.get("state"), asked.get("split")
    with lab.lock:
        jobs = [job for job in lab.all_jobs() if state in {None, job.state} and split in {None, job.split}]
    start, limit = int(asked.get("cursor", 0)), int(asked.get("limit", 50))
    more = str(start + limit) if start + limit < len(jobs) else None
    return JobPage(jobs=tuple(jobs[start : start + limit]), next_cursor=more)


@_route("GET", "/v1/jobs/{id}")
async def _job(lab: Lab, request: Request) -> BaseModel:
    revision, wait = request.query_params.get("revision"), float(request.query_params.get("wait", 0))
    end = time.monotonic() + wait
    while True:
        with lab.lock:
            job = lab.find(request.path_params["id"])[1]
            if wait and str(job.revision) == revision:
                job = lab.advance(job.id)
        if str(job.revision) != revision or job.state.is_final or time.monotonic() >= end:
            return job
        await asyncio.sleep(POLL)


@_route("GET", "/v1/jobs/{id}/events")
async def _events(lab: Lab, request: Request) -> Response:
    async def stream(job: Job, after: int) -> AsyncGenerator[str]:
        sent: int | None = None
        while True:
            with lab.lock:
                job = lab.find(job.id)[1]
                events = [event for event in lab.events if event.job == job.id and event.seq > after]
            for event in events:
                after = event.seq
                yield f"id: {event.seq}\nevent: {event.kind}\ndata: {event.model_dump_json()}\n\n"
            if job.revision != sent:
                sent = job.revision
                yield f"event: job\ndata: {job.model_dump_json()}\n\n"
            if job.state.is_final:
                return
            await asyncio.sleep(POLL)
            with lab.lock:
                lab.advance(job.id)

    with lab.lock:
        job = lab.find(request.path_params["id"])[1]
    return StreamingResponse(stream(job, int(request.headers.get("last-event-id", 0))), media_type="text/event-stream")


@_route("DELETE", "/v1/jobs/{id}")
async def _cancel(lab: Lab, request: Request) -> BaseModel:
    with lab.lock:
        job = lab.find(request.path_params["id"])[1]
        lab.cancel(job.id, request.headers.get(CLIENT_HEADER))
        return lab.find(job.id)[1]


@_route("GET", "/v1/crops")
@_route("GET", "/v1/crops/{split}")
async def _catalog(lab: Lab, request: Request) -> BaseModel:
    split = request.path_params.get("split")
    with lab.lock:
        return CropPage(crops=tuple(lab.describe(*key) for key in lab.published if split in {None, key[0].value}))


@_route("GET", "/v1/crops/{split}/{crop}")
async def _describe(lab: Lab, request: Request) -> BaseModel:
    with lab.lock:
        return lab.describe(*_key(request))


@_route("DELETE", "/v1/crops/{split}/{crop}")
async def _evict(lab: Lab, request: Request) -> BaseModel:
    with lab.lock:
        return RemovedFiles(files=tuple(lab.evict(*_key(request))))


@_route("PUT", "/v1/crops/{split}/{crop}/pin")
@_route("DELETE", "/v1/crops/{split}/{crop}/pin")
async def _pin(lab: Lab, request: Request) -> BaseModel:
    with lab.lock:
        lab.arrays(*_key(request))
        (lab.pins.add if request.method == "PUT" else lab.pins.discard)(_key(request))
        return lab.describe(*_key(request))


@_route("GET", "/v1/crops/{split}/{crop}/file")
async def _file(lab: Lab, request: Request) -> Response:
    asked, (split, crop) = request.query_params, _key(request)
    channels = tuple(parse_channels(asked["channels"])) if "channels" in asked else None
    wanted = FileName(crop, channels, as_context(asked.get("context", 0)), Product(asked.get("product", "crop")))
    with lab.lock:
        file = lab.find_file(split, wanted)
    return FileResponse(
        file.path,
        headers={"ETag": f'"{file.sha256}"', "X-Prismcache-SHA256": file.sha256},
        media_type="application/octet-stream",
    )


@_route("POST", "/v1/leases")
async def _lease(lab: Lab, request: Request) -> BaseModel:
    asked = LeaseRequest.model_validate_json(await request.body())
    with lab.lock:
        return lab.lease(asked)


@_route("PUT", "/v1/leases/{id}")
@_route("DELETE", "/v1/leases/{id}")
async def _renew_or_release(lab: Lab, request: Request) -> BaseModel:
    with lab.lock:
        if (lease := lab.leases.get(request.path_params["id"])) is None:
            raise UnknownLeaseError(f"there is no lease {request.path_params['id']!r}")
        if request.method == "DELETE":
            del lab.leases[lease.id]
        return lease


@_route("POST", "/v1/verify")
async def _verify(lab: Lab, request: Request) -> BaseModel:
    asked = VerifyRequest.model_validate_json(await request.body())
    with lab.lock:
        return VerifyReport(results=tuple(lab.verify(asked.split, asked.crops, repair=asked.repair)))
