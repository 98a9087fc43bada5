"""``/v1/jobs``: request crops, and follow the jobs that make them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated, Any, cast

from fastapi import APIRouter, Body, Header, Query, Request, Response, status
from sse_starlette import EventSourceResponse, ServerSentEvent

from prismcache.errors import (
    ForbiddenError,
    SourceUnreachableError,
    UnknownCropError,
    UnknownJobError,
    error_from_problem,
)
from prismcache.schema import Job, JobEvent, JobPage, JobRequest, Problem, Split, State
from prismcache_service.web.handlers.dependencies import Decimal, JobId, Jobs, KnownQuery, Reader, Requester, readable
from prismcache_service.web.handlers.lifetime import or_none, until_closing
from prismcache_service.web.logs import audit
from prismcache_service.web.problems import documented
from prismcache_service.web.tokens import Role

MAX_WAIT_S = 60
PING_S = 15
_SEND_TIMEOUT_S = 30.0

# Named by `prismcache.remote.api.CLIENT_HEADER`, too.
Client = Annotated[
    str | None,
    Header(
        alias="Prismcache-Client",
        pattern=r"^[A-Za-z0-9-]{1,64}$",
        description="A name that the asking program made up, e.g. a UUID. Programs with the same token that submit the "
        "same share a job; with their names it stops when the last of them cancels it.",
    ),
]

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], dependencies=[KnownQuery])

_REQUESTS: dict[str, Any] = {
    "two crops": {"value": {"split": "instance", "crops": [0, 5]}},
    "some channels of every crop": {"value": {"split": "semantic", "crops": None, "channels": [0, 1, 2]}},
    "only complete sources, before others": {
        "value": {"split": "instance", "crops": [3], "strict": True, "priority": 5}
    },
}
_LOCATION = {"Location": {"description": "The job's URL, relative to this one.", "schema": {"type": "string"}}}
_STREAM = (
    "id: 17\r\nevent: crop\r\n"
    'data: {"seq":17,"job":"5f…","kind":"crop","at":"2025-01-01T00:00:00Z","state":"running","crop":{…}}\r\n\r\n'
    'event: job\r\ndata: {"id":"5f…","revision":41,"state":"running","split":"instance",…}\r\n\r\n: still here\r\n\r\n'
)


@router.post(
    "",
    operation_id="submit_job",
    status_code=status.HTTP_202_ACCEPTED,
    summary="Request crops",
    responses={
        200: {"model": Job, "description": "Every crop is cached or cannot be made: the job is final."},
        202: {"description": "Accepted; follow the job at `Location`.", "headers": _LOCATION},
        **documented(ForbiddenError, UnknownCropError, SourceUnreachableError),
    },
)
async def submit(
    body: Annotated[JobRequest, Body(openapi_examples=_REQUESTS)],
    jobs: Jobs,
    caller: Requester,
    request: Request,
    response: Response,
    client: Client = None,
) -> Job:
    """Start a job. If a job of yours for the same request is active, the response is that job: a retry is safe.

    If a client with a name disconnects before the response, its wish ends as by `cancel_job`.
    """
    asked: dict[tuple[str, str | None], object] = request.app.state.asked
    asker, turn = (caller.name, client), object()
    asked[asker] = turn  # of several requests of one client, only the last one says whether the client is there
    try:
        job = await jobs.submit(body, caller.name, client or "")
        if client and asked.get(asker) is turn and await request.is_disconnected():
            audit("cancel", caller.name, job=job.id, owner=job.owner, client=client, reason="disconnected")
            return await jobs.cancel(job.id, client)
    finally:
        if asked.get(asker) is turn:
            del asked[asker]
    problems = [crop.problem for crop in job.crops]
    if body.crops and all(problem and problem.code == UnknownCropError.code for problem in problems):
        raise error_from_problem(cast("Problem", problems[0]))
    if job.state.is_final:
        response.status_code = status.HTTP_200_OK
    response.headers["Location"] = f"jobs/{job.id}"  # relative, so that it is right behind a proxy too
    return job


@router.get("", operation_id="list_jobs", summary="List jobs, newest first", responses=documented(ForbiddenError))
async def page(
    request: Request,
    jobs: Jobs,
    caller: Reader,
    *,
    state: Annotated[list[State] | None, Query(description="Only jobs in one of these states.", max_length=5)] = None,
    split: Annotated[Split | None, Query(description="Only jobs of this split.")] = None,
    owner: Annotated[
        str | None, Query(description="Only jobs of this token; `me` for yours.", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    ] = None,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.", max_length=500)] = None,
    limit: Annotated[int, Decimal, Query(ge=1, le=500)] = 50,
) -> JobPage:
    """List stored jobs. A job whose crops were all cached already is not stored."""
    name = caller.name if owner == "me" else owner
    page = await jobs.page(states=tuple(state or ()), split=split, owner=name, cursor=cursor, limit=limit)
    return page.model_copy(update={"jobs": readable(request, page.jobs)})


@router.get(
    "/{job_id}", operation_id="get_job", summary="Get a job", responses=documented(ForbiddenError, UnknownJobError)
)
async def get(
    job_id: JobId,
    jobs: Jobs,
    request: Request,
    wait: Annotated[
        float | None, Query(ge=0, le=MAX_WAIT_S, allow_inf_nan=False, description="Seconds to wait for a change.")
    ] = None,
    revision: Annotated[
        int | None, Decimal, Query(ge=0, description="Wait for another revision than this; default: than now.")
    ] = None,
) -> Job:
    """Return the job's present state. With `wait`, wait for a change first; the wait ends early at a shutdown."""
    newer = await or_none(request, jobs.wait(job_id, revision, wait)) if wait else None
    return newer or await jobs.get(job_id)


@router.delete(
    "/{job_id}",
    operation_id="cancel_job",
    summary="Cancel a job",
    responses=documented(ForbiddenError, UnknownJobError),
)
async def cancel(job_id: JobId, jobs: Jobs, caller: Requester, client: Client = None) -> Job:
    """Cancel a job; crops that another job needs are made all the same. Jobs of others need the role `admin`.

    With `Prismcache-Client`, only that client's wish ends; the job goes on for other clients that submitted it.
    """
    job = await jobs.get(job_id)
    if job.owner != caller.name and not caller.may(Role.ADMIN):
        raise ForbiddenError(f"job {job_id!r} belongs to {job.owner!r}")
    audit("cancel", caller.name, job=job_id, owner=job.owner, client=client or "")
    return await jobs.cancel(job_id, client)


@router.get(
    "/{job_id}/events",
    operation_id="follow_job",
    summary="Follow a job (server-sent events)",
    response_class=EventSourceResponse,
    responses={
        200: {
            "description": "`event: submitted|resumed|started|crop|finished` with an `id` and a `JobEvent`, recorded "
            "and resumable; `event: job` without an id, with a `Job`, for progress between them. Comments keep the "
            "connection alive. The stream ends after the job's last event, and when the service shuts down.",
            "content": {"text/event-stream": {"schema": {"type": "string"}, "example": _STREAM}},
        },
        **documented(ForbiddenError, UnknownJobError),
    },
)
async def follow(
    job_id: JobId,
    jobs: Jobs,
    request: Request,
    last_event_id: Annotated[
        int | None, Decimal, Header(ge=0, le=2**63 - 1, description="Continue after this event.")
    ] = None,
    after: Annotated[
        int | None, Decimal, Query(ge=0, le=2**63 - 1, description="As `Last-Event-ID`, for the first connection.")
    ] = None,
) -> EventSourceResponse:
    """Send the job's stored events, then new events as they happen."""
    await jobs.get(job_id)  # so that an unknown job gives 404, not an empty stream
    events = jobs.events(job_id, last_event_id if last_event_id is not None else after or 0)
    stream = _encoded(until_closing(request.app.state.closing, events))
    return EventSourceResponse(
        stream,
        ping=PING_S,
        ping_message_factory=lambda: ServerSentEvent(comment="still here"),
        send_timeout=_SEND_TIMEOUT_S,
    )


async def _encoded(events: AsyncGenerator[JobEvent | Job, None]) -> AsyncGenerator[ServerSentEvent, None]:
    try:
        async for item in events:
            data = item.model_dump_json()
            if isinstance(item, JobEvent):
                yield ServerSentEvent(data, event=item.kind, id=str(item.seq))
            else:
                yield ServerSentEvent(data, event="job")
    finally:
        await events.aclose()
