"""Bodies of objects: aiobotocore says where an object lies, and signs for it; aiohttp fetches it.

A GET through the SDK costs more CPU than moving the body does: it builds the request in a dozen steps and parses the
answer into a model of it. A presigned URL has the same endpoint, region and credentials, for a twentieth of that.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import aiohttp
from aiolimiter import AsyncLimiter
from botocore.exceptions import ClientError
from botocore.httpsession import get_cert_path
from yarl import URL

from prismcache.config import Settings

CONNECT_TIMEOUT_S = 5.0
MAX_STALL_S = 15.0
_MIN_BYTES_PER_S = 1024
_READ_AHEAD = 1 << 17  # bytes that one connection may hold before the loop comes round to it
_MAX_ERROR_BYTES = 1 << 16
_ERROR_CODE = re.compile(rb"<Code>([A-Za-z0-9._-]{1,64})</Code>")


class BodyReader:
    """Reads bodies into buffers. Made by `open_bodies`, which owns the connections.

    Parameters
    ----------
    client
        An aiobotocore S3 client; signs if it has credentials.
    session
        The connections.
    settings
        Bucket, deadlines and bandwidth.
    """

    def __init__(self, client: Any, session: aiohttp.ClientSession, settings: Settings) -> None:
        self._client = client
        self._session = session
        self._bucket = settings.s3_bucket
        self._window = min(MAX_STALL_S, settings.s3_object_timeout / 4)
        # The limit is shared out evenly: every worker process has a reader of its own.
        limit = settings.s3_bandwidth_limit
        self._pace = None if limit is None else AsyncLimiter(limit / settings.workers, 1.0)

    async def read(self, key: str, size: int, into: bytearray, *, if_match: str | None) -> int:
        """Read an object of `size` bytes into the buffer; answers how many came, at most `size` + 1.

        Raises
        ------
        botocore.exceptions.ClientError
            If the answer is not a body; carries status and S3's error code, as the SDK's own would.
        aiohttp.ClientError, OSError, TimeoutError
            If the connection fails, or brings less than 1 KiB/s.
        """
        condition = {} if if_match is None else {"IfMatch": if_match}
        url = await self._client.generate_presigned_url("get_object", {"Bucket": self._bucket, "Key": key, **condition})
        headers = {} if if_match is None else {"If-Match": if_match}
        async with self._session.get(URL(url, encoded=True), headers=headers, allow_redirects=False) as response:
            if response.status != 200:
                raise await _refusal(response)
            return await self._fill(response.content, size, into)

    async def _fill(self, stream: aiohttp.StreamReader, size: int, into: bytearray) -> int:
        loop = asyncio.get_running_loop()
        filled, mark, mark_at = 0, 0, loop.time()
        while piece := await stream.readany():
            end = filled + len(piece)
            if end > size:
                return size + 1
            into[filled:end] = piece
            filled = end
            if self._pace is not None:
                await self._pace.acquire(min(len(piece), self._pace.max_rate))
            if (elapsed := loop.time() - mark_at) > self._window:
                if filled - mark < _MIN_BYTES_PER_S * elapsed:
                    raise TimeoutError(f"less than {_MIN_BYTES_PER_S} bytes/s for {elapsed:.0f} s")
                mark, mark_at = filled, loop.time()
        return filled


async def _refusal(response: aiohttp.ClientResponse) -> ClientError:
    body = await response.content.read(_MAX_ERROR_BYTES)
    code = _ERROR_CODE.search(body)
    return ClientError(
        {
            "Error": {"Code": code[1].decode() if code else response.reason or ""},
            "ResponseMetadata": {"HTTPStatusCode": response.status},
        },
        "GetObject",
    )


@asynccontextmanager
async def open_bodies(client: Any, settings: Settings, ca_bundle: str | None) -> AsyncIterator[BodyReader]:
    """A reader with its connections open for the time of the block; `ca_bundle` as in AWS's own settings."""
    plain = client.meta.endpoint_url.startswith("http://")
    connector = aiohttp.TCPConnector(
        limit=settings.s3_concurrency,
        ssl=False if plain else ssl.create_default_context(cafile=ca_bundle or get_cert_path(verify=True)),
    )
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=min(MAX_STALL_S, settings.s3_object_timeout / 2)
    )
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        headers={"User-Agent": f"prismcache/{version('prismcache')}", "Accept-Encoding": "identity"},
        auto_decompress=False,
        read_bufsize=_READ_AHEAD,
        trust_env=True,  # proxies, as the SDK takes them
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as session:
        yield BodyReader(client, session, settings)
