"""Follow a job by server-sent events, and go on where it broke off."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TypeAlias

import httpx2
from pydantic import ValidationError

from prismcache.errors import ServiceError, ServiceUnreachableError
from prismcache.remote.http import Connection, StreamRefusedError
from prismcache.remote.retry import Attempts, Refusal
from prismcache.schema import Job, JobEvent

Message: TypeAlias = Job | JobEvent

RECORDED = frozenset({"submitted", "resumed", "started", "crop", "finished"})
"""Events that have an id and are sent again from `Last-Event-ID` on."""


def read_message(event: httpx2.ServerSentEvent) -> Message | None:
    """What an event says; None for a kind that this version does not know.

    Raises
    ------
    ServiceError
        If its data are not what its kind promises.
    """
    model = Job if event.event == "job" else JobEvent if event.event in RECORDED else None
    if model is None:
        return None
    try:
        return model.model_validate_json(event.data)
    except ValidationError:
        raise ServiceError(f"the service sent an event {event.event!r} that cannot be read") from None


async def follow(connection: Connection, path: str) -> AsyncGenerator[Message]:
    """Every message until a snapshot is final, reconnecting in between.

    Parameters
    ----------
    connection
        To the service.
    path
        Of the job's events.

    Raises
    ------
    PrismError
        If the service refuses, or stays away for longer than the connection's patience.
    """
    last_id, attempts = "", Attempts()
    while True:
        try:
            async with connection.stream(path, headers=resume_headers(last_id)) as response:
                async for event in httpx2.EventSource(response):
                    last_id, attempts = event.id or last_id, Attempts()
                    message = read_message(event)
                    if message is not None:
                        yield message
                    if isinstance(message, Job) and message.state.is_final:
                        return
            refusal = _ended(connection.url)
        except StreamRefusedError as refused:
            refusal = refused.refusal
        attempts = await connection.pause(attempts, refusal)


def _ended(url: str) -> Refusal:
    """The service ended the stream before the job did, as it does when it shuts down."""
    return Refusal(ServiceUnreachableError(f"the service at {url} ended the stream of events"), passing=True)


def resume_headers(last_id: str) -> dict[str, str]:
    """Headers of a request for the events after `last_id`; empty asks for all."""
    return {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
