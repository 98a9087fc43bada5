"""Servers, gateways and proxies with their own ways of S3: understood, or refused at once with the quirk's name."""

from __future__ import annotations

import dataclasses
import gzip
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from prismcache.config import Settings
from prismcache.errors import (
    ConfigError,
    SourceChangedError,
    SourceCorruptError,
    SourceDeniedError,
    SourceError,
    SourceUnreachableError,
)
from prismcache_service.pipeline.bucket.s3 import open_s3
from prismcache_service.pipeline.bucket.source import Source
from tests.support.bucket import make_bucket
from tests.support.cache_root import tiny_spec
from tests.support.crops import BUCKET, crop_folder
from tests.support.fault_actions import error_reply
from tests.support.faults import Action, Chunked, FaultProxy, Html, Reply, Rewrite, Status
from tests.support.s3 import S3Server

pytestmark = pytest.mark.anyio
SPEC = tiny_spec(0)
FOLDER, KEY = "instance/crop_0.zarr", "raw/0.0.0.0"


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bucket(tmp_path_factory.mktemp("quirks"), [SPEC])


@pytest.fixture(scope="module")
def server(bucket: Path) -> Iterator[FaultProxy]:
    with S3Server(bucket, dir_cache_seconds=86_400) as real, FaultProxy(real.endpoint) as proxy:
        yield proxy


@pytest.fixture
def proxy(server: FaultProxy) -> Iterator[FaultProxy]:
    server.clear()
    yield server
    server.clear()


@asynccontextmanager
async def opened(proxy: FaultProxy, **settings: Any) -> AsyncIterator[Source]:
    with ThreadPoolExecutor(1) as executor:
        async with open_s3(Settings.load({}, s3_endpoint_url=proxy.endpoint, **settings), executor) as source:
            yield source


async def read(source: Source, key: str = KEY, *, document: bool = False) -> bytes:
    item = (await source.list_objects(FOLDER))[key]
    if document:
        return await source.read_document(FOLDER, item)
    return bytes(await source.read(FOLDER, item))


def headers(**changes: str | None) -> Action:
    """The server's own response with other headers; None takes one away."""
    named = {name.replace("_", "-"): value for name, value in changes.items()}

    def change(reply: Reply) -> Reply:
        kept = {name: value for name, value in reply.headers.items() if name not in named}
        return dataclasses.replace(reply, headers=kept | {n: v for n, v in named.items() if v is not None})

    return Rewrite(change)


def body(function: Callable[[bytes], bytes], **more: str) -> Action:
    return Rewrite(lambda r: dataclasses.replace(r, body=function(r.body), headers={**r.headers, **more}))


def listing(pattern: str, by: str) -> Action:
    return body(lambda text: re.sub(pattern.encode(), by.encode(), text))


def status(number: int) -> Action:
    return Rewrite(lambda r: dataclasses.replace(r, status=number))


UNDERSTOOD = {
    "an empty Content-Encoding": headers(content_encoding=""),
    "Content-Encoding identity": headers(content_encoding="identity"),
    "Content-Encoding aws-chunked": headers(content_encoding="aws-chunked"),
    "Content-Encoding gzip of a body as listed": headers(content_encoding="gzip"),
    "no Content-Length": Chunked(),
    "no ETag": headers(etag=None),
    "no Last-Modified": headers(last_modified=None),
    "an ETag of its own": headers(etag='"something-else"'),
    "status 206 for a whole object": status(206),
    "status 203 of a proxy that changed headers": status(203),
    "another type": headers(content_type="text/html"),
}


@pytest.mark.parametrize("document", [False, True], ids=["chunk", "document"])
@pytest.mark.parametrize("quirk", UNDERSTOOD)
async def test_a_body_is_what_length_and_digest_say(
    proxy: FaultProxy, bucket: Path, quirk: str, document: bool
) -> None:
    proxy.add(UNDERSTOOD[quirk])
    async with opened(proxy) as source:
        assert await read(source, document=document) == (crop_folder(bucket, SPEC) / KEY).read_bytes()


async def test_bodies_that_obstore_cannot_read_come_otherwise_which_is_said_once(proxy: FaultProxy, caplog) -> None:
    proxy.add(Chunked())
    async with opened(proxy) as source:
        with caplog.at_level(logging.WARNING, "prismcache"):
            await read(source)
            await read(source, "raw/0.0.0.1")
    assert [r.message for r in caplog.records if "more slowly" in r.message] == [caplog.records[0].message]
    assert proxy.gets().total() == 3


def _redirect(status: int, location: str, region: str | None = None) -> Action:
    more = {} if region is None else {"x-amz-bucket-region": region}
    return Rewrite(lambda _: Reply(status, {"location": location, **more}, b""))


def _refused_by(code: str) -> Action:
    return Rewrite(
        lambda _: dataclasses.replace(
            error_reply(403), body=error_reply(403).body.replace(b"AccessDenied", code.encode())
        )
    )


REFUSED = {
    "gzip": (body(gzip.compress, **{"content-encoding": "gzip"}), SourceError, "Content-Encoding gzip"),
    "501": (Status(501), SourceError, "responds 501"),
    "redirect": (_redirect(302, "http://localhost:9/elsewhere"), SourceError, "redirects are not followed"),
    "the clock": (_refused_by("RequestTimeTooSkewed"), SourceDeniedError, "403 RequestTimeTooSkewed.*machine's clock"),
    "a page in Latin-1": (
        Rewrite(lambda _: Reply(403, {"content-type": "text/html"}, "verboten für alle".encode("latin-1"))),
        SourceDeniedError,
        "responds 403",
    ),
    "307 to a region": (_redirect(307, "http://localhost:9/", "eu-west-1"), ConfigError, "in the region eu-west-1"),
    "region": (_redirect(301, "http://localhost:9/", "eu-west-1"), ConfigError, "in the region eu-west-1"),
}


@pytest.mark.parametrize("document", [False, True], ids=["chunk", "document"])
@pytest.mark.parametrize("quirk", REFUSED)
async def test_what_asking_again_cannot_mend_is_refused_at_once(proxy: FaultProxy, quirk: str, document: bool) -> None:
    action, error, words = REFUSED[quirk]
    proxy.add(action)
    async with opened(proxy) as source:
        with pytest.raises(error) as caught:
            await read(source, document=document)
    assert re.search(words, f"{caught.value} {caught.value.remedy}")
    assert {seen.method for seen in proxy.requests} == {"GET"}  # neither HEAD, which some servers forbid, nor Range
    assert not any("range" in seen.headers for seen in proxy.requests)
    assert proxy.gets().total() <= (1 if document else 2)  # obstore's, and aiobotocore's that sees the redirect


def _the_same_page_for_ever() -> Action:
    first: list[Reply] = []

    def change(reply: Reply) -> Reply:
        more = b"<NextContinuationToken>t</NextContinuationToken><IsTruncated>true"
        first.append(dataclasses.replace(reply, body=reply.body.replace(b"<IsTruncated>false", more)))
        return first[0]

    return Rewrite(change)


REFUSED_LISTINGS = {
    "a web page": (Html(), ConfigError, "not an S3 server"),
    "404": (
        Rewrite(lambda _: Reply(404, {"content-type": "text/html"}, b"<p>not here<br>")),
        ConfigError,
        "not an S3 server",
    ),
    "501": (Rewrite(lambda _: error_reply(501)), SourceError, "501"),
    "the clock": (_refused_by("RequestTimeTooSkewed"), SourceDeniedError, "403 RequestTimeTooSkewed.*machine's clock"),
    "200 with AccessDenied": (
        Rewrite(lambda _: dataclasses.replace(error_reply(403), status=200)),
        SourceDeniedError,
        "AccessDenied",
    ),
    "more keys, and no way to them": (
        listing("<IsTruncated>false", "<IsTruncated>true"),
        SourceError,
        "the same keys again",
    ),
    "no sizes": (listing("<Size>[^<]*</Size>", ""), ConfigError, "not an S3 server"),
    "sizes below nought": (listing("<Size>", "<Size>-"), ConfigError, "not an S3 server"),
    "an index of files": (Html(b'<html><a href="raw/">raw/</a></html>'), ConfigError, "not an S3 server"),
    "another region": (
        _redirect(301, "http://localhost:9/", "eu-west-1"),
        ConfigError,
        "PRISMCACHE_S3_REGION=eu-west-1",
    ),
    "a redirect": (_redirect(307, "http://localhost:9/"), SourceError, "redirects are not followed"),
    "pages that repeat": (_the_same_page_for_ever(), SourceError, "the same keys again"),
    "keys of another folder": (listing("crop_0.zarr", "crop_1.zarr"), SourceError, "crop_1.zarr.* does not begin"),
    "keys that are encoded": (listing("<Key>[^<]*", "<Key>ls%2Fmodels%2Fkey"), SourceError, "encoded unasked"),
}


@pytest.mark.parametrize("quirk", REFUSED_LISTINGS)
async def test_a_listing_that_cannot_be_used_is_refused_at_once(proxy: FaultProxy, quirk: str) -> None:
    action, error, words = REFUSED_LISTINGS[quirk]
    proxy.add(action, listing=True)
    async with opened(proxy) as source:
        with pytest.raises(error) as caught:
            await source.list_objects(FOLDER)
    assert re.search(words, f"{caught.value} {caught.value.remedy}")
    assert len(proxy.requests) == (2 if words == "the same keys again" else 1)


@pytest.mark.parametrize(
    "quirk",
    [
        Rewrite(lambda _: dataclasses.replace(error_reply(503), status=200)),
        Rewrite(lambda _: error_reply(503)),
        Rewrite(lambda r: dataclasses.replace(r, body=r.body[: len(r.body) // 2])),
    ],
    ids=["SlowDown with status 200", "SlowDown", "half an XML document"],
)
async def test_a_listing_that_fails_for_a_moment_is_asked_for_again(proxy: FaultProxy, quirk: Action) -> None:
    proxy.add(quirk, listing=True, times=2)
    async with opened(proxy) as source:
        assert KEY in await source.list_objects(FOLDER)
    assert len(proxy.requests) == 3


@pytest.mark.parametrize("document", [False, True], ids=["chunk", "document"])
async def test_a_web_page_in_place_of_an_object_is_named(proxy: FaultProxy, document: bool) -> None:
    proxy.add(Html())
    async with opened(proxy, s3_object_timeout=0.5) as source:
        with pytest.raises(SourceUnreachableError, match="a web page came in its place") as caught:
            await read(source, document=document)
    assert "login page of a network" in caught.value.remedy


@pytest.mark.parametrize("document", [False, True], ids=["chunk", "document"])
async def test_an_error_with_status_200_is_no_object(proxy: FaultProxy, document: bool, bucket: Path) -> None:
    proxy.add(Rewrite(lambda _: dataclasses.replace(error_reply(503), status=200)), times=2)
    async with opened(proxy) as source:
        assert await read(source, document=document) == (crop_folder(bucket, SPEC) / KEY).read_bytes()


async def test_a_redirect_on_the_same_host_gives_the_listed_object_or_an_error(proxy: FaultProxy, bucket: Path) -> None:
    """Only redirects to other hosts are refused by obstore (`bodies._proxy_options`); length and digest decide here."""
    key = f"/{BUCKET}/{SPEC.prefix}"
    proxy.add(_redirect(307, f"{proxy.endpoint}{key}/labels/0.0.0"), key=f"{FOLDER}/{KEY}")
    async with opened(proxy, s3_object_timeout=0.5) as source:
        with pytest.raises(SourceError):
            await read(source)
    proxy.clear()
    proxy.add(_redirect(307, f"{proxy.endpoint}{key}/{KEY}?again"), key=f"{FOLDER}/{KEY}", times=1)
    async with opened(proxy) as source:
        assert await read(source) == (crop_folder(bucket, SPEC) / KEY).read_bytes()


def _two_pages(more: bytes = b"<NextContinuationToken>t</NextContinuationToken><IsTruncated>true") -> Action:
    """Half of the keys, and `more`; then the others."""
    whole: list[Reply] = []

    def change(reply: Reply) -> Reply:
        is_first = not whole
        whole.append(reply)
        entries = re.findall(rb"<Contents>.*?</Contents>", whole[0].body, re.DOTALL)
        body = whole[0].body
        for entry in entries[::2] if is_first else entries[1::2]:
            body = body.replace(entry, b"")
        if is_first:
            body = re.sub(b"<MaxKeys>[0-9]+</MaxKeys>", b"", body)
            body = body.replace(b"<IsTruncated>false", b"<MaxKeys>%d</MaxKeys>" % len(entries[1::2]) + more)
        return dataclasses.replace(whole[0], body=body)

    return Rewrite(change)


MARKER = f"<Contents><Key>{SPEC.prefix}/raw/</Key><Size>0</Size><ETag>&quot;d41d8&quot;</ETag></Contents><Contents>"
UNDERSTOOD_LISTINGS = {
    "without its prefix": (lambda: listing("<Prefix>[^<]*</Prefix>", ""), 1),
    "with markers of directories": (lambda: body(lambda text: text.replace(b"<Contents>", MARKER.encode(), 1)), 1),
    "in small pages": (_two_pages, 2),
    "in pages of the first version": (lambda: _two_pages(b"<IsTruncated>true"), 2),
    "cut after a full page without a word": (lambda: _two_pages(b"<IsTruncated>false"), 2),
}


@pytest.mark.parametrize("quirk", UNDERSTOOD_LISTINGS)
async def test_a_listing_may_come(proxy: FaultProxy, quirk: str) -> None:
    async with opened(proxy) as source:
        plain = await source.list_objects(FOLDER)
        proxy.clear()
        change, requests = UNDERSTOOD_LISTINGS[quirk]
        proxy.add(change(), listing=True)
        found = await source.list_objects(FOLDER)
        assert len(proxy.requests) == requests
        assert {key: item for key, item in found.items() if key != "raw/"} == plain
        await source.read(FOLDER, found[KEY])


async def test_a_listing_without_etags_works_with_one_warning(proxy: FaultProxy, bucket: Path, caplog) -> None:
    proxy.add(listing("<ETag>[^<]*</ETag>", ""), listing=True)
    with caplog.at_level(logging.WARNING, "prismcache"):
        async with opened(proxy) as source:
            for _ in range(2):
                assert await read(source) == (crop_folder(bucket, SPEC) / KEY).read_bytes()
    assert [record.message for record in caplog.records] == [
        f"{proxy.endpoint} lists objects without ETags: only their lengths are checked"
    ]


OTHER_MD5 = "0123456789abcdef" * 2
REVERSED = listing("<ETag>[^<]*</ETag>", f"<ETag>&quot;{OTHER_MD5}&quot;</ETag>")


async def _read_all(source: Source) -> None:
    for key in ("raw/.zarray", KEY):
        await read(source, key, document=key == "raw/.zarray")


async def test_etags_that_are_no_md5_are_named_with_the_setting(proxy: FaultProxy) -> None:
    proxy.add(REVERSED, listing=True)
    async with opened(proxy, s3_object_timeout=0.5) as source:
        listed = await source.list_objects(FOLDER)
        errors = []
        for key in ("raw/.zarray", "raw/.zattrs"):
            with pytest.raises(SourceCorruptError) as caught:
                await source.read_document(FOLDER, listed[key])
            errors.append(caught.value)
    assert "no object of http://127.0.0.1" in str(errors[-1])
    assert "PRISMCACHE_S3_ETAG_IS_MD5=no" in str(errors[-1].remedy)


@pytest.mark.parametrize("setting", ["no", "auto"])
async def test_etags_that_are_no_md5_can_be_taken_as_names(proxy: FaultProxy, setting: str, caplog) -> None:
    proxy.add(REVERSED, listing=True)
    kms = {"x_amz_server_side_encryption": "aws:kms"} if setting == "auto" else {}
    proxy.add(headers(etag=f'"{OTHER_MD5}"', **kms))
    with caplog.at_level(logging.WARNING, "prismcache"):
        async with opened(proxy, s3_etag_is_md5=setting) as source:
            await _read_all(source)
    assert [record.message for record in caplog.records if "aws:kms" in record.message][1:] == []
    assert bool(kms) == bool(caplog.records)
    assert proxy.gets() == {f"ls/models/training_data/{FOLDER}/{key}": 1 for key in ("raw/.zarray", KEY)}


@pytest.mark.parametrize("document", [False, True], ids=["chunk", "document"])
@pytest.mark.parametrize("etag", ["abc-2", OTHER_MD5 + "-7"])
async def test_a_412_of_an_object_with_the_listed_etag_is_a_quirk(proxy: FaultProxy, etag: str, document: bool) -> None:
    proxy.add(listing("<ETag>[^<]*</ETag>", f"<ETag>&quot;{etag}&quot;</ETag>"), listing=True)
    proxy.add(Status(412), times=1)
    proxy.add(headers(etag=f'"{etag}"'))
    async with opened(proxy) as source:
        await read(source, document=document)
    first, second = [seen for seen in proxy.requests if not seen.listing]
    assert first.headers["if-match"] == f'"{etag}"'
    assert "if-match" not in second.headers


@pytest.mark.parametrize("document", [False, True], ids=["chunk", "document"])
async def test_a_412_of_an_object_with_another_etag_is_a_change(proxy: FaultProxy, document: bool) -> None:
    proxy.add(listing("<ETag>[^<]*</ETag>", "<ETag>&quot;abc-2&quot;</ETag>"), listing=True)
    proxy.add(Status(412), times=1)
    proxy.add(headers(etag='"def-2"'))
    async with opened(proxy) as source:
        with pytest.raises(SourceChangedError, match="another ETag"):
            await read(source, document=document)


async def test_a_weak_etag_is_no_condition(proxy: FaultProxy) -> None:
    proxy.add(listing("<ETag>[^<]*</ETag>", "<ETag>W/&quot;abc&quot;</ETag>"), listing=True)
    proxy.add(headers(etag='W/"abc"'))
    async with opened(proxy) as source:
        assert (await source.list_objects(FOLDER))[KEY].etag == 'W/"abc"'
        await read(source)
    assert not any("if-match" in seen.headers for seen in proxy.requests)


@pytest.mark.parametrize("prefix", ["", "a  b", "odd+%2F#é", "double//slash"])
async def test_a_prefix_may_be_odd(tmp_path: Path, prefix: str) -> None:
    place = tmp_path / "e11bio-prism" / prefix / "instance" / "crop_0.zarr"
    place.mkdir(parents=True)
    (place / "object").write_bytes(b"content")
    with S3Server(tmp_path) as real, ThreadPoolExecutor(1) as executor:
        settings = Settings.load({}, s3_endpoint_url=real.endpoint).model_copy(update={"s3_prefix": prefix})
        async with open_s3(settings, executor) as source:
            if "//" in prefix:  # a folder on a disk has no such name: nothing is there, and nothing is invented
                assert await source.list_objects(FOLDER) == {}
            else:
                assert await read(source, "object") == b"content"
