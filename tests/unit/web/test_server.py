"""Connections: how many one address may have, and what a proxy in front may."""

from __future__ import annotations

import asyncio
from functools import partial
from ipaddress import ip_network

import pytest
import uvicorn
from uvicorn.server import ServerState

from prismcache_service.web import server


@pytest.mark.anyio
@pytest.mark.parametrize(("proxies", "open_connections"), [([], 1), ([ip_network("127.0.0.0/8")], 2)])
async def test_connections_are_limited_for_each_address_but_not_for_a_proxy(proxies, open_connections, monkeypatch):
    monkeypatch.setattr(server, "MAX_CONNECTIONS_OF_ADDRESS", 1)
    config = uvicorn.Config(lambda scope, receive, send: None, log_config=None, http=server.GuardedProtocol)
    config.load()
    protocol = partial(server.GuardedProtocol, proxies=proxies, config=config, server_state=ServerState(), app_state={})
    listening = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    async with listening:
        connections = [await asyncio.open_connection(*listening.sockets[0].getsockname()) for _ in range(2)]
        ends = [asyncio.create_task(reader.read()) for reader, _ in connections]
        await asyncio.wait(ends, timeout=0.2)
        assert sum(not end.done() for end in ends) == open_connections
        for _, writer in connections:
            writer.close()
        await asyncio.gather(*ends, return_exceptions=True)
