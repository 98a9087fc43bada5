"""Bodies of objects, fetched by obstore, which receives and decrypts without the GIL.

What obstore cannot do for a server (keys that it does not take, a response without a length, a redirect to another
host) goes through aiobotocore's `get_object`, which is slower; the log says so once.

`aiobotocore` decides where an object lies (endpoint, region, path or host style) and brings the credentials, if any.
"""

from __future__ import annotations

import asyncio
import logging
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import obstore
from aiolimiter import AsyncLimiter
from botocore.exceptions import NoCredentialsError
from botocore.httpsession import get_cert_path
from botocore.parsers import ResponseParserError
from obstore.exceptions import BaseError
from obstore.store import S3Store

from prismcache.config import Settings
from prismcache.errors import ConfigError
from prismcache_service.pipeline.bucket.responses import failure_of

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ClientConfig, S3Credential

CONNECT_TIMEOUT_S = 5.0
MAX_STALL_S = 30.0
_PIECE_BYTES = 1 << 16  # of a body that comes through aiobotocore
_MAX_IN_FLIGHT = 40_000_000  # bytes; what a link of 10 Gbit/s brings in 30 ms, the time to an object's first byte
_CREDENTIALS_LIFE = timedelta(minutes=10)  # then aiobotocore is asked again; the object store does so 5 minutes early
_NOWHERE = "http://127.0.0.1:0"  # a proxy for all other hosts: redirects are not followed
_log = logging.getLogger("prismcache")


@dataclass(frozen=True)
class Body:
    """A response: length in bytes, bytes, and its ETag, Content-Encoding, encryption and type, empty where unknown.

    The bytes are not read, and empty, where the length is not the expected one.
    """

    length: int
    data: memoryview
    etag: str
    encoding: str
    encryption: str = ""
    media_type: str = ""


class BodyReader:
    """Reads objects of one bucket into buffers.

    `client` is an aiobotocore S3 client, for what obstore cannot do; `store` is obstore's client of the same bucket.
    """

    def __init__(self, client: Any, store: S3Store, settings: Settings) -> None:
        self._client, self._store, self._settings = client, store, settings
        self._sdk_only = False
        self._requests = asyncio.Semaphore(settings.s3_concurrency)
        self._bytes, self._ended = 0, asyncio.Condition()
        limit = settings.s3_bandwidth_limit  # shared out evenly: each worker process has a reader of its own
        self._pace = None if limit is None else AsyncLimiter(limit / settings.workers, 1.0)

    @asynccontextmanager
    async def turn(self, size: int) -> AsyncIterator[None]:
        """Wait until a body of `size` bytes may be fetched, which the block does.

        Small objects need many requests to fill a link. As many large ones would share it until all of them come to
        their ends at once, and leave nothing to decode before; so the bytes in flight are bounded, too.
        """
        async with self._requests:
            async with self._ended:
                await self._ended.wait_for(lambda: not self._bytes or self._bytes + size <= _MAX_IN_FLIGHT)
                self._bytes += size
            try:
                if self._pace is not None:
                    most = int(self._pace.max_rate)
                    for start in range(0, size, most):
                        await self._pace.acquire(min(size - start, most))
                yield
            finally:
                self._bytes -= size
                async with self._ended:
                    self._ended.notify_all()

    async def read(self, key: str, size: int, *, if_match: str | None) -> Body:
        """Read an object of `size` bytes.

        Raises
        ------
        botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError, aiohttp.ClientError, OSError,
        obstore.exceptions.BaseError
            If there is no response, or one that is no object; see `responses.failure_of`.
        """
        if not self._sdk_only:
            try:
                return await self._by_obstore(key, size, if_match)
            except BaseError as error:
                is_page = "invalid utf-8" in str(error)  # of an error, whose status obstore then leaves out
                if not is_page and not _is_beyond_obstore(error):
                    raise
                if not is_page:
                    self._sdk_only = True
                    _log.warning("bodies come through aiobotocore, more slowly: %s", failure_of(error).reason)
        return await self.read_by_sdk(key, size, if_match=if_match)

    async def _by_obstore(self, key: str, size: int, if_match: str | None) -> Body:
        options: GetOptions | None = None if if_match is None else {"if_match": if_match}
        response = await obstore.get_async(self._store, key, options=options)
        meta = response.meta
        data = memoryview(await response.bytes_async() if meta["size"] == size else b"")
        encoding, media_type = (str(response.attributes.get(f"Content-{name}", "")) for name in ("Encoding", "Type"))
        return Body(meta["size"], data, meta["e_tag"] or "", encoding, media_type=media_type)

    async def read_by_sdk(self, key: str, size: int, *, if_match: str | None) -> Body:
        """Read as `read` does, through aiobotocore alone."""
        condition = {} if if_match is None else {"IfMatch": if_match}
        data = bytearray()
        async with asyncio.timeout(self._settings.s3_object_timeout / 2):
            with reading_response():
                response = await self._client.get_object(Bucket=self._settings.s3_bucket, Key=key, **condition)
            length = int(response.get("ContentLength", size))
            stream = response["Body"]
            async with stream:
                while length == size and len(data) <= size and (piece := await stream.read(_PIECE_BYTES)):
                    data += piece
        return Body(
            len(data) if length == size else length,
            memoryview(data),
            response.get("ETag", ""),
            response.get("ContentEncoding", ""),
            response.get("ServerSideEncryption", ""),
            response.get("ContentType", ""),
        )


@contextmanager
def reading_response() -> Iterator[None]:
    """Raise `ResponseParserError` for errors that botocore raises on responses that are none of S3's."""
    try:
        yield
    except (LookupError, TypeError, ValueError) as error:
        raise ResponseParserError(f"{type(error).__name__}: {error}") from error
    except AttributeError as error:  # aiohttp's, of a connection that broke off together with its response
        raise ConnectionError("the connection broke off") from error


def _is_beyond_obstore(error: Exception) -> bool:
    """Return whether obstore failed by its own limits; broken connections and HTTP statuses are not of them.

    Its TLS refuses a server's certificate that is its own authority, as many labs make them, and OpenSSL accepts it;
    through a proxy it takes an IPv6 address in brackets for no server's name.
    """
    text = str(error)
    is_of_the_connection = "HttpError" in text and not any(
        sign in text for sign in ("127.0.0.1:0", "InvalidCertificate", "Invalid Server Name")
    )
    return failure_of(error).status == 0 and not is_of_the_connection


async def open_store(session: Any, client: Any, settings: Settings) -> S3Store:
    """Return an obstore client of the server and with the credentials of an aiobotocore client. It never retries.

    Raises
    ------
    ConfigError
        If the environment names a proxy that is no HTTP proxy.
    botocore.exceptions.NoCredentialsError
        If credentials are wanted and there are none.
    """
    credentials = None if settings.s3_anonymous else await session.get_credentials()
    if credentials is None and not settings.s3_anonymous:
        raise NoCredentialsError
    url = urlsplit(client.meta.endpoint_url)
    is_aws = (url.hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))
    by_host = is_aws and "." not in settings.s3_bucket  # a certificate of AWS does not fit a bucket with dots
    host = f"{settings.s3_bucket}.{url.netloc}" if by_host else url.netloc
    options: ClientConfig = {
        "allow_http": url.scheme == "http",
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
        "read_timeout": timedelta(seconds=min(MAX_STALL_S, settings.s3_object_timeout / 3)),
        "timeout": timedelta(seconds=settings.s3_object_timeout / 2),  # a body that drips leaves time for another try
        "user_agent": f"prismcache/{version('prismcache')}",
        "default_headers": {"accept-encoding": "identity"},
        **_proxy_options(url.scheme, host),
    }
    # Also for http: obstore makes no client on a machine without certificates of its own.
    named = session.get_config_variable("ca_bundle") if url.scheme == "https" else None
    authorities = named or get_cert_path(verify=True)
    options["root_certificate"] = await asyncio.to_thread(Path(authorities).read_bytes)
    return S3Store(
        settings.s3_bucket,
        endpoint=f"{url.scheme}://{host}{url.path}".rstrip("/"),
        region=settings.s3_region,
        virtual_hosted_style_request=by_host,
        skip_signature=settings.s3_anonymous,
        credential_provider=None if credentials is None else _credentials_of(credentials),
        client_options=options,
        retry_config={"max_retries": 0, "retry_timeout": timedelta(0)},
    )


def _proxy_options(scheme: str, host: str) -> ClientConfig:
    """Return the proxy that the environment names for a server, as aiobotocore takes it for its own requests.

    Without one, all hosts but the server's own are sent to a proxy that does not exist: obstore would follow a
    redirect to any of them.
    """
    proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(scheme)
    if proxy is None:
        return {"proxy_url": _NOWHERE, "proxy_excludes": urlsplit(f"//{host}").hostname or ""}
    url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise ConfigError(
            f"a proxy of the kind {url.scheme}://{url.hostname or ''} is not supported",
            remedy="Name an http:// proxy in HTTPS_PROXY and HTTP_PROXY, or the server's host in NO_PROXY.",
        )
    return {"proxy_url": url.geturl()}


def _credentials_of(credentials: Any) -> Any:
    """Return a function that obstore calls for credentials; aiobotocore refreshes its own when they are read."""

    async def current() -> S3Credential:
        frozen = await credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_LIFE,
        }

    return current
