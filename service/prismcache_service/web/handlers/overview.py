"""``/v1/me``, ``/v1/events`` and ``/v1/history``: the caller, jobs and state now, and figures over time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from sse_starlette import EventSourceResponse, ServerSentEvent

from prismcache.errors import ForbiddenError, StorageError
from prismcache.schema import JobPage, State
from prismcache_service.factory import ServiceFactory
from prismcache_service.jobs import KEEP_DAYS
from prismcache_service.store import Figures
from prismcache_service.web.handlers.dependencies import Decimal, FactoryOf, KnownQuery, Reader, ReadersOnly
from prismcache_service.web.handlers.lifetime import until_closing
from prismcache_service.web.problems import documented

router = APIRouter(tags=["operation"], dependencies=[KnownQuery, ReadersOnly])

_LOOK_S = 0.5  # between two looks at the jobs; all streams share one look
_STATUS_S = 5.0
_MAX_JOBS = 100
_NEWEST = 20
_PING_S = 15
_SEND_TIMEOUT_S = 30.0
_OPEN = (State.QUEUED, State.RUNNING)
_STREAM = 'event: jobs\r\ndata: {"jobs":[{"id":"5f…","state":"running",…}],"next_cursor":null}\r\n\r\n'


class Me(BaseModel):
    """The caller: the token's name (empty where the service has no tokens) and role."""

    name: str
    role: str


class FiguresOverTime(BaseModel):
    """Figures of intervals of `seconds` each, oldest first; an interval in which no service ran is not there."""

    seconds: int
    figures: list[Figures]


@router.get("/v1/me", operation_id="me", summary="Who is asking", responses=documented(ForbiddenError))
async def me(caller: Reader) -> Me:
    """What a page needs to know to offer only what the token allows."""
    return Me(name=caller.name, role=str(caller.role))


@router.get(
    "/v1/history",
    operation_id="history",
    summary="Bytes fetched, hits, misses and size of the cache over time",
    responses=documented(ForbiddenError, StorageError),
)
async def history(
    factory: FactoryOf,
    *,
    days: Annotated[int, Decimal, Query(ge=1, le=KEEP_DAYS, description="How far to look back.")] = 1,
) -> FiguresOverTime:
    """Some 290 intervals of all services on one store together, kept for 90 days."""
    seconds, figures = await factory.history.figures(days)
    return FiguresOverTime(seconds=seconds, figures=figures)


@router.get(
    "/v1/events",
    operation_id="follow_service",
    summary="Follow the service (server-sent events)",
    response_class=EventSourceResponse,
    responses={
        200: {
            "description": "`event: jobs` with a `JobPage` of the unfinished and the newest jobs, at once and when one "
            "changes; `event: changed` when a crop of a job has ended, so that lists are worth reading again; "
            "`event: status` with a `ServiceStatus` every few seconds. The stream ends when the service shuts down.",
            "content": {"text/event-stream": {"schema": {"type": "string"}, "example": _STREAM}},
        },
        **documented(ForbiddenError),
    },
)
async def follow(factory: FactoryOf, request: Request) -> EventSourceResponse:
    """One stream is enough for a page, for any number of jobs."""
    stream = until_closing(request.app.state.closing, _events(factory, request.app.state))
    return EventSourceResponse(stream, ping=_PING_S, send_timeout=_SEND_TIMEOUT_S)


async def _events(factory: ServiceFactory, state: Any) -> AsyncGenerator[ServerSentEvent, None]:
    sent, ended, status_at = "", None, time.monotonic()
    while True:
        page = await _latest_jobs(factory, state)
        text = page.model_dump_json()
        if text != sent:
            yield ServerSentEvent(text, event="jobs")
            sent = text
        now_ended = {(job.id, crop.crop) for job in page.jobs for crop in job.crops if crop.state.is_final}
        if ended is not None and now_ended - ended:
            yield ServerSentEvent("{}", event="changed")
        ended = now_ended
        if time.monotonic() - status_at > _STATUS_S:
            yield ServerSentEvent((await factory.status()).model_dump_json(), event="status")
            status_at = time.monotonic()
        await asyncio.sleep(_LOOK_S)


async def _latest_jobs(factory: ServiceFactory, state: Any) -> JobPage:
    """Return the unfinished jobs and the newest, looked up at most once in `_LOOK_S` seconds for all streams together.

    The newest are there so that a job that fails between two looks is not missed.
    """
    async with state.overview_lock:
        if state.overview is None or time.monotonic() - state.overview[0] > _LOOK_S:
            unfinished = await factory.jobs.page(states=_OPEN, limit=_MAX_JOBS)
            newest = await factory.jobs.page(limit=_NEWEST)
            jobs = {job.id: job for job in (*newest.jobs, *unfinished.jobs)}
            state.overview = time.monotonic(), JobPage(jobs=tuple(jobs.values()))
        found: JobPage = state.overview[1]
        return found
