"""HTTP API v1 over a `Lab`, as transports for the HTTP library's clients: no port, no server."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable

import httpx2
from pydantic import ValidationError

from prismcache.errors import PrismError, RequestError, UnauthorizedError
from tests.support.fake_service.lab import Lab
from tests.support.fake_service.routes import ROUTES, Call, answer_json, answer_problem

POLL = 0.005


class LabApi(httpx2.AsyncBaseTransport, httpx2.BaseTransport):
    """Answers requests from a lab; in the sync case without waiting.

    Parameters
    ----------
    lab
        The state.
    token
        Ask for this one.

    Attributes
    ----------
    requests
        Method and path of every request, in the order of arrival.
    fault
        Called with each request first; may return another response or raise.
    """

    def __init__(self, lab: Lab, token: str | None = None) -> None:
        self.lab = lab
        self.requests: list[str] = []
        self._token = token
        self.fault: Callable[[httpx2.Request], httpx2.Response | None] = lambda request: None

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer at once."""
        return self._answer(request)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer; a long poll or a stream waits."""
        await request.aread()
        if (instead := self.fault(request)) is not None:
            return instead
        answer = self._answer(request)
        path = request.url.path
        if answer.is_success and request.method == "GET" and (match := re.fullmatch(r"/v1/jobs/([^/]+)", path)):
            return await self._long_poll(request, match[1])
        if answer.is_success and (match := re.fullmatch(r"/v1/jobs/([^/]+)/events", path)):
            after = int(request.headers.get("last-event-id", 0))
            stream = _Stream(self._events(match[1], after))
            return httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, stream=stream)
        return answer

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        with self.lab.lock:
            self.requests.append(f"{request.method} {request.url.path}")
            try:
                if self._token is not None and request.headers.get("authorization") != f"Bearer {self._token}":
                    raise UnauthorizedError("no token, or not a valid one")
                for method, pattern, handler in ROUTES:
                    if method == request.method and (match := pattern.fullmatch(request.url.path)):
                        return handler(Call(self.lab, request, match))
                raise RequestError(f"there is no {request.method} {request.url.path}")
            except ValidationError as error:
                return answer_problem(RequestError(f"the request cannot be read: {error.errors()[0]['msg']}"))
            except PrismError as error:
                return answer_problem(error)

    async def _long_poll(self, request: httpx2.Request, job_id: str) -> httpx2.Response:
        revision, wait = request.url.params.get("revision"), float(request.url.params.get("wait", 0))
        end = time.monotonic() + wait
        while True:
            try:
                with self.lab.lock:
                    job = self.lab.look(job_id)
                    if wait and str(job.revision) == revision:
                        job = self.lab.advance(job_id)
            except PrismError as error:
                return answer_problem(error)
            if str(job.revision) != revision or job.state.is_final or time.monotonic() >= end:
                return answer_json(job)
            await asyncio.sleep(POLL)

    async def _events(self, job_id: str, after: int) -> AsyncGenerator[bytes]:
        told: int | None = None
        while True:
            with self.lab.lock:
                events, job = self.lab.events(job_id, after), self.lab.look(job_id)
            for event in events:
                after = event.seq
                yield f"id: {event.seq}\nevent: {event.kind}\ndata: {event.model_dump_json()}\n\n".encode()
            if job.revision != told:
                told = job.revision
                yield f"event: job\ndata: {job.model_dump_json()}\n\n".encode()
            if job.state.is_final:
                return
            await asyncio.sleep(POLL)
            with self.lab.lock:
                self.lab.advance(job_id)


class _Stream(httpx2.AsyncByteStream):
    """What a generator yields, as a body."""

    def __init__(self, parts: AsyncGenerator[bytes]) -> None:
        self._parts = parts

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._parts

    async def aclose(self) -> None:
        await self._parts.aclose()
