"""Crops in an S3 bucket, through aiobotocore.

There is exactly one retry layer, here: the SDK makes one attempt, and our full-jitter loop covers the body as well,
which the SDK's own retries do not. Length and digest are checked inside the loop, so damage on the way is retried.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore import UNSIGNED
from botocore.exceptions import BotoCoreError, ClientError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from prismcache.config import Settings
from prismcache.errors import (
    ConfigError,
    PrismError,
    SourceChangedError,
    SourceCorruptError,
    SourceDeniedError,
    SourceError,
    SourceUnreachableError,
)
from prismcache.layout import SourceObject
from prismcache_service.pipeline.bucket.connections import CONNECT_TIMEOUT_S
from prismcache_service.pipeline.bucket.digests import DigestChecks
from prismcache_service.pipeline.bucket.in_flight import InFlight
from prismcache_service.pipeline.bucket.s3_bodies import MAX_STALL_S, BodyReader, open_bodies
from prismcache_service.pipeline.bucket.source import Source, plain_md5

T = TypeVar("T")

# Ten attempts ride out half of all answers failing for one object; sixteen do so for thousands. A listing is the first
# contact, where an unreachable endpoint should be reported in seconds.
_READ_ATTEMPTS = 16
_LIST_ATTEMPTS = 5
_PERMANENT = frozenset({400, 405, 409, 411, 413, 416, 501})
_CONNECTION_ERRORS = (BotoCoreError, aiohttp.ClientError, OSError, TimeoutError, asyncio.IncompleteReadError)


class _RetryableError(Exception):
    """One attempt failed in a way that another may not; `error` is what to say when none is left."""

    def __init__(self, error: SourceError) -> None:
        super().__init__(str(error))
        self.error = error


class S3Source(Source):
    """A bucket's folder. Made by `open_s3`, which owns the connections.

    Parameters
    ----------
    client
        An aiobotocore S3 client that makes one attempt a request.
    bodies
        Fetches what the client would sign for.
    settings
        Bucket, prefix, concurrency and deadlines.
    executor
        Threads for digests, so that the event loop never hashes.
    """

    def __init__(self, client: Any, bodies: BodyReader, settings: Settings, executor: Executor) -> None:
        self._client = client
        self._bodies = bodies
        self._settings = settings
        self._digests = DigestChecks(executor)
        self._in_flight = InFlight(settings.s3_concurrency)

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
                found[key] = SourceObject(key=key, size=entry["Size"], etag=entry.get("ETag", "").strip('"'))
        return found

    async def list_folders(self, folder: str) -> list[str]:
        prefix = self._key(folder, "")
        return [
            entry["Prefix"].removeprefix(prefix).rstrip("/")
            async for page in self._pages(prefix, delimiter="/")
            for entry in page.get("CommonPrefixes", ())
        ]

    async def read(self, folder: str, item: SourceObject, into: memoryview) -> memoryview:
        async def attempt(deadline: asyncio.Timeout) -> memoryview:
            async with AsyncExitStack() as held:
                async with _not_counted(deadline):
                    await held.enter_async_context(self._in_flight.fetching(item.size))
                    await self._bodies.admit(item.size)
                view = await self._read_body(folder, item, into)
            try:
                await self._digests.check(item, view)
            except SourceCorruptError as error:
                raise _RetryableError(error) from None
            return view

        return await self._retrying(attempt, f"object {item.key!r} of {self.url}/{folder}", _READ_ATTEMPTS)

    def _key(self, folder: str, name: str) -> str:
        return "/".join(part for part in (self._settings.s3_prefix, folder) if part) + f"/{name}"

    async def _pages(self, prefix: str, delimiter: str) -> AsyncIterator[dict[str, Any]]:
        what = f"listing of s3://{self._settings.s3_bucket}/{prefix}"
        token: dict[str, str] = {}
        while True:
            request = {"Bucket": self._settings.s3_bucket, "Prefix": prefix, "Delimiter": delimiter, **token}
            page = await self._retrying(partial(self._page, what, request), what, _LIST_ATTEMPTS)
            yield page
            if not page["IsTruncated"]:
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    async def _page(self, what: str, request: dict[str, str], _deadline: asyncio.Timeout) -> dict[str, Any]:
        page: dict[str, Any] = await self._client.list_objects_v2(**request)
        # botocore takes any 200 for a listing, and one that is none for one without keys: whatever is missing from it
        # would count as absent from the bucket, and become fill values.
        complete = "IsTruncated" in page and (not page["IsTruncated"] or "NextContinuationToken" in page)
        if not complete or page.get("Prefix") != request["Prefix"]:
            raise _RetryableError(
                SourceUnreachableError(f"{what}: {self.endpoint} answers 200 with what is no listing")
            )
        return page

    async def _read_body(self, folder: str, item: SourceObject, into: memoryview) -> memoryview:
        # A plain MD5 proves the body, which is more than If-Match does (and some proxies have ETags of their own).
        condition = None if plain_md5(item.etag) or not item.etag else f'"{item.etag}"'
        length = await self._bodies.read(self._key(folder, item.key), item.size, into, if_match=condition)
        if length != item.size:
            raise _RetryableError(
                SourceCorruptError(f"object {item.key!r} came with {length} bytes, its listing says {item.size}")
            )
        return into[:length]

    async def _retrying(self, attempt: Callable[[asyncio.Timeout], Awaitable[T]], what: str, attempts: int) -> T:
        """`attempt` until it succeeds, fails for good, or attempts or the object's time run out."""
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
                        except _CONNECTION_ERRORS as error:
                            last = self._unreachable(what, error)
                            raise _RetryableError(last) from error
                        except ClientError as error:
                            last = self._refused(what, error)
                            if isinstance(last, SourceUnreachableError):
                                raise _RetryableError(last) from error
                            raise last from error
        except TimeoutError:
            raise last or self._unreachable(what, TimeoutError("no answer")) from None
        except _RetryableError as failure:
            raise failure.error from failure.__cause__
        raise AssertionError("the retry loop always returns or raises")

    def _unreachable(self, what: str, error: BaseException) -> SourceUnreachableError:
        reason = str(error) or type(error).__name__
        return SourceUnreachableError(f"{what}: {self.endpoint} does not answer: {reason}")

    def _refused(self, what: str, error: ClientError) -> PrismError:
        """The typed error for an HTTP error answer (`SourceUnreachableError` for those worth a retry)."""
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code = error.response.get("Error", {}).get("Code", "")
        said = f"{what}: {self.endpoint} answers {status} {code}".rstrip()
        if status in {401, 403}:
            return SourceDeniedError(said)
        if code == "NoSuchBucket":
            return ConfigError(said, remedy="Check PRISMCACHE_S3_BUCKET.")
        if status == 404:
            return SourceCorruptError(f"{said}, though it was listed")
        if status == 412:
            return SourceChangedError(f"{said}: it changed since it was listed")
        if status in _PERMANENT or 300 <= status < 400:
            return SourceError(said)
        return SourceUnreachableError(said)


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


@asynccontextmanager
async def open_s3(settings: Settings, executor: Executor) -> AsyncIterator[S3Source]:
    """The source that `settings` name, with its connections open for the time of the block.

    Raises
    ------
    ConfigError
        If the endpoint is no URL or credentials were asked for and there are none.
    """
    plain = (settings.s3_endpoint_url or "").startswith("http://")
    config = AioConfig(
        signature_version=UNSIGNED if settings.s3_anonymous else "s3v4",  # its default for URLs is the old "s3"
        retries={"total_max_attempts": 1},
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=min(MAX_STALL_S, settings.s3_object_timeout / 2),
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",  # ours are length and digest of every object
        s3={"addressing_style": "path" if settings.s3_endpoint_url else "auto"},
    )
    try:
        session = get_session()
        # Nobody reads the listing's times, and telling what format they are in takes two thirds of reading it.
        session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
        context = session.create_client(
            "s3",
            region_name=settings.s3_region,
            endpoint_url=settings.s3_endpoint_url,
            config=config,
            verify=False if plain else None,
        )
        ca_bundle = session.get_config_variable("ca_bundle")
        async with context as client, open_bodies(client, settings, ca_bundle) as bodies:
            yield S3Source(client, bodies, settings, executor)
    except (BotoCoreError, ValueError) as error:
        raise ConfigError(f"the S3 settings are unusable: {error}") from error
