"""The calls of HTTP API v1 that an in-memory service answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2
from pydantic import BaseModel

from prismcache.errors import PrismError
from prismcache.numbers import parse_channels
from prismcache.remote.api import CLIENT_HEADER
from prismcache.schema import (
    ClearedQuarantine,
    CropPage,
    JobPage,
    JobRequest,
    LeaseRequest,
    RemovedFiles,
    ServiceStatus,
    Split,
    Usage,
    VerifyReport,
    VerifyRequest,
)
from tests.support.fake_service.lab import Key, Lab


@dataclass(frozen=True)
class Call:
    """A request, and what its path holds."""

    lab: Lab
    request: httpx2.Request
    match: re.Match[str]

    @property
    def key(self) -> Key:
        return Split(self.match["split"]), int(self.match["crop"])

    @property
    def client(self) -> str | None:
        return self.request.headers.get(CLIENT_HEADER)


Handler = Callable[[Call], httpx2.Response]
ROUTES: list[tuple[str, re.Pattern[str], Handler]] = []
_CROP = r"/v1/crops/(?P<split>instance|semantic)/(?P<crop>\d{1,6})"


def answer_json(model: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> httpx2.Response:
    """`model` as an answer."""
    return answer(status, model.model_dump_json().encode(), headers, "application/json")


def answer_problem(error: PrismError) -> httpx2.Response:
    """`error` as an answer."""
    problem = error.to_problem()
    return answer(problem.status, problem.model_dump_json().encode(), None, "application/problem+json")


def answer(
    status: int, content: bytes = b"", headers: Mapping[str, str] | None = None, media_type: str = "text/plain"
) -> httpx2.Response:
    """An answer whose body is `content`, streamed, since a client may read it raw."""
    given = {"Content-Type": media_type, "Content-Length": str(len(content)), **(headers or {})}
    return httpx2.Response(status, headers=given, stream=httpx2.ByteStream(content))


def _route(methods: str, pattern: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        ROUTES.extend((method, re.compile(pattern), handler) for method in methods.split("|"))
        return handler

    return register


def _range_start(request: httpx2.Request, etag: str) -> int:
    """Where the asked part begins; 0 for the whole, also where the file is not the one that `If-Range` names."""
    match = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
    return 0 if match is None or request.headers.get("if-range", etag) != etag else int(match[1])


@_route("GET", "/healthz")
def _health(_: Call) -> httpx2.Response:
    return httpx2.Response(200, json={"status": "ok"})


@_route("DELETE", "/v1/quarantine")
def _clear_quarantine(_: Call) -> httpx2.Response:
    return answer_json(ClearedQuarantine(files=0, bytes=0))  # damaged files are written anew in place


@_route("GET", "/v1/status")
def _status(call: Call) -> httpx2.Response:
    files = call.lab.files.values()
    running = [job for job in call.lab.jobs() if not job.state.is_final]
    usage = Usage(
        files=len(files),
        used_bytes=sum(file.size for file in files),
        reserved_bytes=0,
        max_bytes=None,
        min_free_bytes=0,
        free_bytes=10**12,
        total_bytes=2 * 10**12,
    )
    return answer_json(
        ServiceStatus(
            version="in-memory",
            engine="in-memory",
            workers=1,
            jobs_queued=0,
            jobs_running=len(running),
            crops_queued=0,
            crops_running=sum(1 for job in running for crop in job.crops if not crop.state.is_final),
            usage=usage,
        )
    )


@_route("POST", "/v1/jobs")
def _submit(call: Call) -> httpx2.Response:
    job = call.lab.submit(JobRequest.model_validate_json(call.request.content), call.client or "")
    return answer_json(job, 200 if job.state.is_final else 202, {"Location": f"jobs/{job.id}"})


@_route("GET", "/v1/jobs")
def _jobs(call: Call) -> httpx2.Response:
    asked = call.request.url.params
    state, split = asked.get("state"), asked.get("split")
    jobs = [job for job in call.lab.jobs() if state in {None, job.state} and split in {None, job.split}]
    start, limit = int(asked.get("cursor", 0)), int(asked.get("limit", 50))
    more = str(start + limit) if start + limit < len(jobs) else None
    return answer_json(JobPage(jobs=tuple(jobs[start : start + limit]), next_cursor=more))


@_route("GET", r"/v1/jobs/(?P<id>[^/]+)(/events)?")
def _job(call: Call) -> httpx2.Response:
    return answer_json(call.lab.look(call.match["id"]))


@_route("DELETE", r"/v1/jobs/(?P<id>[^/]+)")
def _cancel(call: Call) -> httpx2.Response:
    return answer_json(call.lab.cancel(call.match["id"], call.client))


@_route("GET", r"/v1/crops(/(?P<split>instance|semantic))?")
def _catalog(call: Call) -> httpx2.Response:
    return answer_json(
        CropPage(crops=call.lab.catalog(None if call.match["split"] is None else Split(call.match["split"])))
    )


@_route("GET", _CROP)
def _describe(call: Call) -> httpx2.Response:
    return answer_json(call.lab.describe(*call.key))


@_route("DELETE", _CROP)
def _evict(call: Call) -> httpx2.Response:
    return answer_json(RemovedFiles(files=call.lab.evict(*call.key)))


@_route("PUT|DELETE", f"{_CROP}/pin")
def _pin(call: Call) -> httpx2.Response:
    return answer_json(call.lab.pin(*call.key, pinned=call.request.method == "PUT"))


@_route("GET|HEAD", f"{_CROP}/file")
def _file(call: Call) -> httpx2.Response:
    asked = call.request.url.params.get("channels")
    file = call.lab.find_file(*call.key, None if asked is None else tuple(parse_channels(asked)))
    etag = f'"{file.sha256}"'
    headers = {"ETag": etag, "X-Prismcache-SHA256": file.sha256, "Accept-Ranges": "bytes"}
    start = _range_start(call.request, etag)
    if start >= file.size:
        return answer(416, headers=headers | {"Content-Range": f"bytes */{file.size}"})
    if start:
        headers["Content-Range"] = f"bytes {start}-{file.size - 1}/{file.size}"
    headers["Content-Length"] = str(file.size - start)
    content = b"" if call.request.method == "HEAD" else Path(file.path).read_bytes()[start:]
    return answer(206 if start else 200, content, headers, "application/octet-stream")


@_route("POST", "/v1/leases")
def _lease(call: Call) -> httpx2.Response:
    return answer_json(call.lab.lease(LeaseRequest.model_validate_json(call.request.content)), 201)


@_route("PUT", r"/v1/leases/(?P<id>\w+)")
def _renew(call: Call) -> httpx2.Response:
    return answer_json(call.lab.renew(call.match["id"]))


@_route("DELETE", r"/v1/leases/(?P<id>\w+)")
def _release(call: Call) -> httpx2.Response:
    call.lab.release(call.match["id"])
    return answer(204)


@_route("POST", "/v1/verify")
def _verify(call: Call) -> httpx2.Response:
    asked = VerifyRequest.model_validate_json(call.request.content)
    return answer_json(VerifyReport(results=call.lab.verify(asked)))
