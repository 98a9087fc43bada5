"""Crops in an S3 bucket, through aiobotocore.

There is exactly one retry layer, here: the SDK makes one attempt, and our full-jitter loop covers the body as well,
which the SDK's own retries do not. Length and digest are checked inside the loop, so damage on the way is retried.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, TypeVar
from urllib.parse import unquote

import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import get_session
from botocore import UNSIGNED
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from obstore.exceptions import BaseError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from prismcache.config import Settings
from prismcache.errors import (
    ConfigError,
    PrismError,
    SourceChangedError,
    SourceCorruptError,
    SourceError,
    SourceUnreachableError,
)
from prismcache.layout import SourceObject
from prismcache.splits import SplitEntry
from prismcache_service.pipeline.bucket.bodies import (
    CONNECT_TIMEOUT_S,
    MAX_STALL_S,
    Body,
    BodyReader,
    open_store,
    reading_response,
)
from prismcache_service.pipeline.bucket.responses import Failure, RedirectRefusedError, decide, failure_of
from prismcache_service.pipeline.bucket.source import Source, bare_etag, md5_of, plain_md5

T = TypeVar("T")

# If half of all responses fail, ten attempts are enough for one object, sixteen for thousands. A listing is the first
# contact, where an unreachable endpoint should be reported in seconds.
_READ_ATTEMPTS = 16
_LIST_ATTEMPTS = 5
_DIFFERING = 2  # objects that stay as they are and differ from their ETags, while none agrees: the server's property
_REQUEST_ERRORS = (
    ClientError,
    BotoCoreError,
    ResponseParserError,
    BaseError,
    aiohttp.ClientError,
    OSError,
    asyncio.IncompleteReadError,
)
_log = logging.getLogger("prismcache")


class _RetryableError(Exception):
    """One attempt failed in a way that another may not; `error` is what to say when none is left."""

    def __init__(self, error: PrismError) -> None:
        super().__init__(str(error))
        self.error = error


class S3Source(Source):
    """A bucket's folder. Made by `open_s3`, which owns the connections.

    `client` is an aiobotocore S3 client that makes one attempt for each request; `executor` has the threads for
    digests, so that the event loop never hashes.
    """

    def __init__(self, client: Any, bodies: BodyReader, settings: Settings, executor: Executor) -> None:
        self._client, self._bodies, self._settings, self._executor = client, bodies, settings, executor
        self._etag_is_md5 = settings.s3_etag_is_md5 != "no"
        self._has_matched = False  # any object its ETag
        self._found: dict[str, str | None] = {}  # the MD5 of a body that was not the listed one, by key
        self._differing: set[str] = set()  # keys whose body was the same again, and again not the listed one
        self._warned: set[str] = set()

    @property
    def url(self) -> str:
        return f"s3://{self._settings.s3_bucket}/{self._settings.s3_prefix}".rstrip("/")

    @property
    def endpoint(self) -> str:
        return self._settings.s3_endpoint_url or f"S3 in {self._settings.s3_region}"

    async def list_objects(self, folder: str) -> dict[str, SourceObject]:
        prefix = self._key(folder, "")
        found: dict[str, SourceObject] = {}
        async for page in self._pages(prefix, delimiter=""):
            for entry in page.get("Contents", ()):
                key = entry["Key"].removeprefix(prefix)
                found[key] = SourceObject(key=key, size=entry["Size"], etag=bare_etag(entry.get("ETag", "")))
        if any(not item.etag for item in found.values()):
            self._warn_once(f"{self.endpoint} lists objects without ETags: only their lengths are checked")
        return found

    async def list_folders(self, folder: str) -> list[str]:
        prefix = self._key(folder, "")
        return [
            entry["Prefix"].removeprefix(prefix).rstrip("/")
            async for page in self._pages(prefix, delimiter="/")
            for entry in page.get("CommonPrefixes", ())
        ]

    async def read(self, folder: str, item: SourceObject) -> memoryview:
        return await self._verified(folder, item, self._bodies.read)

    async def read_document(self, folder: str, item: SourceObject) -> bytes:
        return bytes(await self._verified(folder, item, self._bodies.read_by_sdk))

    async def _verified(self, folder: str, item: SourceObject, read: Callable[..., Any]) -> memoryview:
        key, what = self._key(folder, item.key), f"object {item.key!r} of {self.url}/{folder}"

        async def attempt(deadline: asyncio.Timeout) -> memoryview:
            digest = plain_md5(item.etag) if self._etag_is_md5 else None
            # A plain MD5 proves the body, which is more than If-Match does (and some proxies have ETags of their own).
            condition = None if digest or not item.etag or item.etag.startswith("W/") else f'"{item.etag}"'
            async with AsyncExitStack() as held:
                async with _not_counted(deadline):
                    await held.enter_async_context(self._bodies.turn(item.size))
                try:
                    body: Body = await read(key, item.size, if_match=condition)
                except _REQUEST_ERRORS as error:
                    # Some servers compare If-Match with other quotes than they list. The response's own ETag decides.
                    if condition is None or failure_of(error).status != 412:
                        raise
                    body = await read(key, item.size, if_match=None)
            found = None
            if digest is not None and body.length == item.size:  # hashlib releases the GIL
                found = await asyncio.get_running_loop().run_in_executor(self._executor, md5_of, body.data)
            self._judge(item, body, digest, found, what)
            return body.data

        return await self._retrying(attempt, what, _READ_ATTEMPTS)

    def _judge(self, item: SourceObject, body: Body, digest: str | None, found: str | None, what: str) -> None:
        """Compare a body with its listing; `found` is its MD5, `digest` the listed one, both None if unknown."""
        if self._settings.s3_etag_is_md5 == "auto" and body.encryption.startswith("aws:kms"):
            self._etag_is_md5, digest = False, None  # the S3 API reference, "Object": such ETags are no MD5
            self._warn_once(f"{self.endpoint} encrypts with {body.encryption}: ETags are no MD5, lengths are checked")
        if body.length != item.size:
            wrong = SourceCorruptError(
                f"object {item.key!r} came with {body.length} bytes, its listing says {item.size}"
            )
        elif digest is not None and found != digest:
            wrong = SourceCorruptError(f"object {item.key!r} has MD5 {found}, its listing says {digest}")
            if self._found.get(item.key) == found:
                self._differing.add(item.key)
            self._found[item.key] = found
        elif digest is None and item.etag and body.etag and bare_etag(body.etag) != item.etag:
            raise SourceChangedError(f"{what}: it has another ETag than when it was listed")
        else:
            self._has_matched = self._has_matched or digest is not None
            return
        if body.encoding not in {"", "identity", "aws-chunked"}:
            raise SourceError(
                f"{what}: {self.endpoint} sends Content-Encoding {body.encoding}, which was not requested"
            )
        if len(self._differing) >= _DIFFERING and not self._has_matched and self._settings.s3_etag_is_md5 == "auto":
            raise SourceCorruptError(
                f"{what}: no object of {self.endpoint} has the MD5 that its ETag names. The server's ETags are no MD5, "
                "or something on the way changes all bodies",
                remedy="Set PRISMCACHE_S3_ETAG_IS_MD5=no if the server encrypts objects or makes ETags of its own.",
            )
        if body.media_type.startswith("text/html"):
            raise _RetryableError(
                SourceUnreachableError(
                    f"{what}: a web page came in its place ({wrong})",
                    remedy="Something on the way sends pages of its own, as the login page of a network does: look at "
                    f"{self.endpoint} in a browser on this machine.",
                )
            )
        raise _RetryableError(wrong)

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            _log.warning(text)

    def _key(self, folder: str, name: str) -> str:
        return "".join(f"{part}/" for part in (self._settings.s3_prefix, folder) if part) + name

    async def _pages(self, prefix: str, delimiter: str) -> AsyncIterator[dict[str, Any]]:
        what = f"listing of s3://{self._settings.s3_bucket}/{prefix}"
        more: dict[str, str] = {}
        seen: set[str] = set()
        while True:
            request = {"Bucket": self._settings.s3_bucket, "Prefix": prefix, "Delimiter": delimiter, **more}
            page = await self._retrying(partial(self._page, what, request), what, _LIST_ATTEMPTS)
            keys = set(_keys(page))
            yield page
            # Some servers and caches cut a listing without saying so: a page that is full may not be the last one.
            if not page["IsTruncated"] and not 0 < len(keys) == page.get("MaxKeys", 1000):
                return
            if keys <= seen:
                raise SourceError(f"{what}: {self.endpoint} sends the same keys again, and says that there are more")
            seen |= keys
            if token := page.get("NextContinuationToken"):
                more = {"ContinuationToken": token}
            else:  # every server knows the first version of the request, some know only that
                more = {"Marker": page.get("NextMarker") or max(seen, default="")}

    async def _page(self, what: str, request: dict[str, str], _deadline: asyncio.Timeout) -> dict[str, Any]:
        list_page = self._client.list_objects if "Marker" in request else self._client.list_objects_v2
        with reading_response():
            page: dict[str, Any] = await list_page(**request)
            keys, sizes = _keys(page), [entry["Size"] for entry in page.get("Contents", ())]
        # botocore takes any 200 for a listing, and a 200 without a listing for one without keys: the missing objects
        # would count as absent from the bucket, and become fill values.
        headers = page.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        if "IsTruncated" not in page and headers.get("content-length") == "0":
            raise _RetryableError(SourceUnreachableError(f"{what}: {self.endpoint} responds 200 without a body"))
        if "IsTruncated" not in page or min(sizes, default=0) < 0:
            raise decide(Failure(200), what, self.endpoint, listing=True).error
        other = next((key for key in keys if not key.startswith(request["Prefix"])), None)
        if other is None and not keys and unquote(page.get("Prefix", request["Prefix"])) != request["Prefix"]:
            other = page["Prefix"]
        if other is not None:
            raise SourceError(
                f"{what}: {self.endpoint} lists {other!r}, which does not begin with the prefix: another folder, or "
                "keys that are encoded unasked"
            )
        return page

    async def _retrying(self, attempt: Callable[[asyncio.Timeout], Awaitable[T]], what: str, attempts: int) -> T:
        """Run `attempt` until it succeeds, fails for good, or attempts or the object's time run out."""
        last: PrismError | None = None
        policy = AsyncRetrying(
            retry=retry_if_exception_type(_RetryableError),
            wait=wait_random_exponential(multiplier=0.1, max=5.0),  # full jitter: uniform in [0, 0.1 s · 2^n]
            stop=stop_after_attempt(attempts),
            reraise=True,
        )
        try:
            async with asyncio.timeout(self._settings.s3_object_timeout) as deadline:
                async for trial in policy:
                    with trial:
                        try:
                            return await attempt(deadline)
                        except _RetryableError as failure:
                            last = failure.error
                            raise
                        except _REQUEST_ERRORS as error:
                            verdict = decide(failure_of(error), what, self.endpoint, listing=attempts == _LIST_ATTEMPTS)
                            last = verdict.error
                            raise (_RetryableError(last) if verdict.retry else last) from error
        except TimeoutError:
            stalled = Failure(reason=f"no response within {self._settings.s3_object_timeout:g} s")
            raise last or decide(stalled, what, self.endpoint, listing=False).error from None
        except _RetryableError as failure:
            raise failure.error from failure.__cause__
        raise AssertionError("the retry loop always returns or raises")


def _keys(page: dict[str, Any]) -> list[str]:
    keys = [entry["Key"] for entry in page.get("Contents", ())]
    return keys + [entry["Prefix"] for entry in page.get("CommonPrefixes", ())]


@asynccontextmanager
async def _not_counted(deadline: asyncio.Timeout) -> AsyncIterator[None]:
    """The time of the block is not the other side's: the deadline moves on by as much."""
    loop, when = asyncio.get_running_loop(), deadline.when()
    began = loop.time()
    deadline.reschedule(None)
    try:
        yield
    finally:
        deadline.reschedule(None if when is None else when + loop.time() - began)


class _NoRedirects(AIOHTTPSession):  # type: ignore[misc]  # aiobotocore has no annotations
    """aiobotocore's HTTP session, which does not follow redirects: the endpoint comes from the configuration only."""

    async def _get_session(self, proxy_url: str | None) -> aiohttp.ClientSession:
        session: aiohttp.ClientSession = await super()._get_session(proxy_url)
        if not session.trace_configs:
            session.trace_configs.append(_REFUSE_REDIRECTS)
        return session


async def _refuse(_session: aiohttp.ClientSession, _: Any, redirect: aiohttp.TraceRequestRedirectParams) -> None:
    raise RedirectRefusedError(redirect.response.status, redirect.response.headers.get("x-amz-bucket-region", ""))


_REFUSE_REDIRECTS = aiohttp.TraceConfig()
_REFUSE_REDIRECTS.on_request_redirect.append(_refuse)
_REFUSE_REDIRECTS.freeze()


async def _open_clients(opened: AsyncExitStack, settings: Settings, config: AioConfig) -> tuple[Any, Any]:
    """Return an aiobotocore and an obstore client of the bucket, open until `opened` is."""
    session = get_session()
    # Nobody reads the listing's times, and telling what format they are in takes two thirds of reading it.
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
    plain = (settings.s3_endpoint_url or "").startswith("http://")
    context = session.create_client(
        "s3",
        region_name=settings.s3_region,
        endpoint_url=settings.s3_endpoint_url,
        config=config,
        verify=False if plain else None,
    )
    client = await opened.enter_async_context(context)
    return client, await open_store(session, client, settings)


@asynccontextmanager
async def open_s3(settings: Settings, executor: Executor) -> AsyncIterator[S3Source]:
    """Open the source that `settings` name for the time of the block.

    Raises
    ------
    ConfigError
        If the endpoint is no URL or credentials were asked for and there are none.
    """
    config = AioConfig(
        signature_version=UNSIGNED if settings.s3_anonymous else "s3v4",  # its default for URLs is the old "s3"
        retries={"total_max_attempts": 1},
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=min(MAX_STALL_S, settings.s3_object_timeout / 2),
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",  # ours are length and digest of every object
        s3={"addressing_style": "path" if settings.s3_endpoint_url else "auto"},
        http_session_cls=_NoRedirects,
        max_pool_connections=settings.s3_concurrency,
    )
    async with AsyncExitStack() as opened:
        try:
            client, store = await _open_clients(opened, settings, config)
        except (BotoCoreError, ValueError) as error:
            raise ConfigError(f"the S3 settings are unusable: {error}") from error
        yield S3Source(client, BodyReader(client, store, settings), settings, executor)


class Sources:
    """One source for each place, opened when it is first needed and kept until `aclose`.

    `settings` have the bucket of all splits that name none; `executor` has the threads for digests, which `aclose`
    ends.
    """

    def __init__(self, settings: Settings, executor: Executor) -> None:
        self._settings, self._executor = settings, executor
        self._opened = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._sources: dict[tuple[tuple[str, object], ...], Source] = {}

    async def aclose(self) -> None:
        """Close all sources, and end the threads."""
        await self._opened.aclose()
        self._executor.shutdown(wait=False)

    async def of(self, entry: SplitEntry) -> Source:
        """Return the source of a split."""
        place = tuple(sorted(entry.place.items()))
        async with self._opening:
            if place not in self._sources:
                settings = self._settings.model_copy(update=entry.place)
                self._sources[place] = await self._opened.enter_async_context(open_s3(settings, self._executor))
        return self._sources[place]
