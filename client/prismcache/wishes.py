"""Which calls of a backend want which job: one bookkeeping for the embedded and for the remote backend.

Several calls for the same crops share one job. Each call has a name of its own, so that cancelling one call stops the
job only when no other call wants it.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import anyio

from prismcache.errors import PrismError
from prismcache.schema import Job, JobRequest

TAKE_BACK_SECONDS = 1.0
"""How long a cancelled call waits until its submission is taken back; afterwards that goes on in the background."""


@dataclass(frozen=True, slots=True)
class Wish:
    """One call's request, and the name that tells the call from others for the same request."""

    request: JobRequest
    name: str = field(default_factory=lambda: uuid.uuid4().hex)


class Wishes:
    """The wishes of one backend, by job.

    Parameters
    ----------
    submit
        Called with a wish; starts or joins the job for it.
    cancel
        Called with a job's id and the name of a call that no longer wants the job.
    """

    def __init__(
        self, submit: Callable[[Wish], Awaitable[Job]], cancel: Callable[[str, str], Awaitable[object]]
    ) -> None:
        self._submit = submit
        self._cancel = cancel
        self._by_job: dict[str, list[Wish]] = {}
        self._taking_back: set[asyncio.Task[None]] = set()

    async def submit(self, wish: Wish) -> Job:
        """Start or join the job for `wish`; when the call is cancelled meanwhile, cancel the job once it is known."""
        submitting = asyncio.ensure_future(self._register(wish))
        try:
            return await asyncio.shield(submitting)
        except asyncio.CancelledError:
            # The caller never learns which job it was, so nobody else could cancel it. The caller need not wait for a
            # service or a bucket that does not respond.
            taking_back = asyncio.ensure_future(self._take_back(submitting))
            self._taking_back.add(taking_back)
            taking_back.add_done_callback(self._taking_back.discard)
            with anyio.move_on_after(TAKE_BACK_SECONDS, shield=True):
                await asyncio.wait({taking_back})
            raise

    async def cancel(self, job_id: str) -> None:
        """End one wish for the job, if there is any."""
        if (wish := self.take(job_id)) is not None:
            await self._cancel(job_id, wish.name)

    def take(self, job_id: str) -> Wish | None:
        """Remove and return one of the wishes for the job; the calls that wait for it are alike."""
        wishes = self._by_job.get(job_id, [])
        wish = wishes.pop() if wishes else None
        if not wishes:
            self._by_job.pop(job_id, None)
        return wish

    def follow(self, job: Job) -> Job:
        """Forget the wishes for a job that is final; return the job."""
        if job.state.is_final:
            self._by_job.pop(job.id, None)
        return job

    async def end(self) -> None:
        """Cancel every wish, and what is still being submitted for callers that are gone."""
        if taking_back := set(self._taking_back):
            _, late = await asyncio.wait(taking_back, timeout=TAKE_BACK_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        open_wishes = [(job_id, wish) for job_id, wishes in self._by_job.items() for wish in wishes]
        self._by_job.clear()
        await asyncio.gather(*(self._cancel(job_id, wish.name) for job_id, wish in open_wishes), return_exceptions=True)

    async def _register(self, wish: Wish) -> Job:
        job = await self._submit(wish)
        if not job.state.is_final:
            self._by_job.setdefault(job.id, []).append(wish)
        return job

    async def _take_back(self, submitting: asyncio.Future[Job]) -> None:
        try:
            with suppress(PrismError):
                await self.cancel((await submitting).id)
        finally:
            submitting.cancel()
