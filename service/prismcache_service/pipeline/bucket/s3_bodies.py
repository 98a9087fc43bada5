"""Bodies of objects: aiobotocore says where an object lies, and signs for it; `connections` fetches it.

A GET through the SDK costs more CPU than moving the body does: it builds the request in a dozen steps and parses the
answer into a model of it. A presigned URL has the same endpoint, region and credentials, for a twentieth of that.
"""

from __future__ import annotations

import re
import ssl
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any
from urllib.parse import quote, urlsplit

from aiolimiter import AsyncLimiter
from botocore.exceptions import ClientError
from botocore.httpsession import get_cert_path

from prismcache.config import Settings
from prismcache_service.pipeline.bucket.connections import Connections
from prismcache_service.pipeline.bucket.http_get import Answer

MAX_STALL_S = 15.0
_ERROR_CODE = re.compile(rb"<Code>([A-Za-z0-9._-]{1,64})</Code>")
_ANY_KEY = "x"


class BodyReader:
    """Reads bodies into buffers. Made by `open_bodies`, which owns the connections.

    Parameters
    ----------
    client
        An aiobotocore S3 client; signs if it has credentials.
    bucket
        Where the objects lie.
    connections
        To the server of that bucket.
    folder
        What a URL's path has before the key, where nothing is signed; None has each URL signed.
    pace
        Bytes a second, or None.
    """

    def __init__(
        self, client: Any, bucket: str, connections: Connections, *, folder: str | None, pace: AsyncLimiter | None
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._connections = connections
        self._folder = folder
        self._pace = pace
        self._headers = f"User-Agent: prismcache/{version('prismcache')}\r\nAccept-Encoding: identity\r\n"

    async def admit(self, size: int) -> None:
        """Wait until `size` bytes more are within the pace."""
        while self._pace is not None and size > 0:
            piece = min(size, int(self._pace.max_rate))
            await self._pace.acquire(piece)
            size -= piece

    async def read(self, key: str, size: int, into: memoryview, *, if_match: str | None) -> int:
        """Read an object of `size` bytes into the buffer; answers the length that the server gives it.

        Another length than `size` is not read.

        Raises
        ------
        botocore.exceptions.ClientError
            If the answer is not a body; carries status and S3's error code, as the SDK's own would.
        OSError, TimeoutError
            If the connection fails, or brings less than 1 KiB/s.
        """
        condition = {} if if_match is None else {"IfMatch": if_match}
        headers = self._headers if if_match is None else f"{self._headers}If-Match: {if_match}\r\n"
        target = await self._target(key, condition)
        answer = await self._connections.get(target, headers, into[:size])
        if answer.status != 200:
            raise _refusal(answer)
        return answer.length

    async def _target(self, key: str, condition: dict[str, str]) -> str:
        if self._folder is not None:
            return self._folder + quote(key, safe="/~")
        url = urlsplit(await _url(self._client, self._bucket, key, condition))
        return f"{url.path}?{url.query}"


async def _url(client: Any, bucket: str, key: str, condition: dict[str, str]) -> str:
    url: str = await client.generate_presigned_url("get_object", {"Bucket": bucket, "Key": key, **condition})
    return url


def _refusal(answer: Answer) -> ClientError:
    code = _ERROR_CODE.search(answer.excerpt)
    return ClientError(
        {
            "Error": {"Code": code[1].decode() if code else ""},
            "ResponseMetadata": {"HTTPStatusCode": answer.status},
        },
        "GetObject",
    )


@asynccontextmanager
async def open_bodies(client: Any, settings: Settings, ca_bundle: str | None) -> AsyncIterator[BodyReader]:
    """A reader with its connections open for the time of the block; `ca_bundle` as in AWS's own settings."""
    url = urlsplit(await _url(client, settings.s3_bucket, _ANY_KEY, {}))
    tls = None
    if url.scheme == "https":
        tls = ssl.create_default_context(cafile=ca_bundle or get_cert_path(verify=True))
    limit = settings.s3_bandwidth_limit  # shared out evenly: every worker process has a reader of its own
    connections = Connections(
        f"{url.scheme}://{url.netloc}",
        tls,
        proxy=_proxy(url.scheme, url.netloc),
        window=min(MAX_STALL_S, settings.s3_object_timeout / 4),
    )
    with connections:
        folder = url.path.removesuffix(_ANY_KEY) if settings.s3_anonymous else None
        pace = None if limit is None else AsyncLimiter(limit / settings.workers, 1.0)
        yield BodyReader(client, settings.s3_bucket, connections, folder=folder, pace=pace)


def _proxy(scheme: str, netloc: str) -> str | None:
    """The proxy that the environment names, as the SDK takes it for its own requests."""
    return None if urllib.request.proxy_bypass(netloc) else urllib.request.getproxies().get(scheme)
