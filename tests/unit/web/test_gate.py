"""The gate bounds how many requests of one caller are under way, so that others are served."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from starlette.types import Message, Receive, Scope, Send

from prismcache_service.config import ServiceConfig
from prismcache_service.web.gate import MAX_REQUESTS_OF_ONE, Gate
from prismcache_service.web.tokens import TokenBook, create_token, tokens_path


@pytest.mark.anyio
async def test_a_token_with_many_open_streams_is_refused_and_another_is_served(tmp_path: Path) -> None:
    config = ServiceConfig.load({}, root=tmp_path / "root", state_folder=tmp_path / "state", rate_limit=10_000)
    tokens = {name: create_token(tokens_path(config), name, "reader") for name in ("ada", "bob")}
    ends = asyncio.Event()
    served: list[str] = []

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        served.append(scope["state"]["caller"].name)
        await ends.wait()

    gate = Gate(stream, TokenBook(tokens_path(config)), config)

    async def request(name: str, path: str = "/v1/events") -> int | None:
        """Return the status of a refusal, or None if the stream was served."""
        statuses: list[int] = []

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        async def receive() -> Message:
            return {"type": "http.disconnect"}

        headers = [(b"authorization", b"Bearer " + tokens[name].encode())]
        scope = {"type": "http", "method": "GET", "path": path, "headers": headers, "client": ("10.0.0.1", 1)}
        await gate(scope, receive, send)
        return statuses[0] if statuses else None

    streams = [asyncio.create_task(request("ada")) for _ in range(MAX_REQUESTS_OF_ONE)]
    await asyncio.sleep(0)
    assert await request("ada") == 429
    streams += [asyncio.create_task(request("bob")), asyncio.create_task(request("ada", "/healthz"))]
    await asyncio.sleep(0)
    assert served == ["ada"] * MAX_REQUESTS_OF_ONE + ["bob", "ada"]
    ends.set()
    assert set(await asyncio.gather(*streams)) == {None}
    assert await request("ada") is None
