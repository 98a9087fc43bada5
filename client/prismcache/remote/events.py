"""Follow a job by server-sent events, and reconnect where the stream broke off."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TypeAlias

import httpx2
from pydantic import ValidationError

from prismcache.errors import ServiceError, ServiceUnreachableError
from prismcache.remote.http import Connection, raised_as_ours
from prismcache.remote.retry import AttemptFailedError, retrying, start_over
from prismcache.schema import Job, JobEvent

Message: TypeAlias = Job | JobEvent

RECORDED = frozenset({"submitted", "resumed", "started", "crop", "finished"})
"""Kinds of events that have an id and are sent again from `Last-Event-ID` on."""


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
