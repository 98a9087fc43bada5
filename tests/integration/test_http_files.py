"""Files over HTTP, checked byte for byte: ranges, conditions, digests, and what is no published file."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.cache_root import tiny_spec
from tests.support.processes import eventually
from tests.support.site import Site, running_site

SPEC = tiny_spec(0)
URL = "/v1/crops/instance/0/file"


@dataclass(frozen=True)
class FileSite(Site):
    """A service with one cached crop, whose bytes are `content`."""

    path: Path
    content: bytes

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()}"'


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileSite]:
    with running_site(tmp_path_factory.mktemp("files"), [SPEC]) as found:
        path = found.ensure()
        yield FileSite(found.lab, found.service, found.http, path, path.read_bytes())


def test_the_whole_file_with_its_digests(site: FileSite) -> None:
    response = site.http.get(URL)

    digest = hashlib.sha256(site.content)
    assert (response.status_code, response.content) == (200, site.content)
    assert response.headers["etag"] == f'"{digest.hexdigest()}"'
    assert response.headers["x-prismcache-sha256"] == digest.hexdigest()
    assert response.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    assert response.headers["content-disposition"] == 'attachment; filename="crop_0.h5"'
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["accept-ranges"] == "bytes"


def test_head_tells_the_same_without_the_file(site: FileSite) -> None:
    get, head = site.http.get(URL), site.http.head(URL, headers={"Range": "bytes=0-0"})

    changing = {"date", "x-request-id"}
    assert (head.status_code, head.content) == (200, b"")
    assert {k: v for k, v in head.headers.items() if k not in changing} == {
        k: v for k, v in get.headers.items() if k not in changing
    }


def test_every_kind_of_range_gives_those_bytes(site: FileSite) -> None:
    size = len(site.content)
    edges = [0, 1, 2, 511, 4096, size // 2, size - 2, size - 1]
    wanted = {f"bytes={a}-{b}": (a, b + 1) for a in edges for b in edges if a <= b}
    wanted |= {f"bytes={a}-": (a, size) for a in edges} | {f"bytes=-{n}": (size - n, size) for n in edges if n}
    wanted |= {f"bytes=5-{size + 9}": (5, size), f"bytes=-{size + 9}": (0, size)}

    for text, (start, stop) in wanted.items():
        response = site.http.get(URL, headers={"Range": text})
        assert (response.status_code, response.content) == (206, site.content[start:stop]), text
        assert response.headers["content-range"] == f"bytes {start}-{stop - 1}/{size}"
        assert response.headers["etag"] == site.etag
    refused = site.http.get(URL, headers={"Range": f"bytes={size}-"})
    assert (refused.status_code, refused.json()["status"]) == (416, 416)
    assert refused.headers["content-range"] == f"bytes */{size}"
    whole = site.http.get(URL, headers={"Range": "bytes=100-", "If-Range": '"another file"'})
    assert (whole.status_code, whole.content) == (200, site.content)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_conditions(site: FileSite, method: str) -> None:
    unchanged = site.http.request(method, URL, headers={"If-None-Match": f'"x", W/{site.etag}'})
    changed = site.http.request(method, URL, headers={"If-None-Match": '"x"'})
    refused = site.http.request(method, URL, headers={"If-Match": '"x"'})

    assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", site.etag)
    assert changed.status_code == 200
    assert refused.status_code == 412


def test_a_subset_of_channels_is_a_file_of_its_own_or_the_fuller_one(site: FileSite) -> None:
    assert site.http.get(URL, params={"channels": "0-1"}).headers["etag"] == site.etag
    assert site.http.get(URL, params={"channels": "0,9"}).json()["code"] == "not_cached"

    site.http.delete("/v1/crops/instance/0").raise_for_status()
    subset = site.ensure(channels=[0, 1])
    response = site.http.get(URL, params={"channels": "0-1"})
    assert response.content == subset.read_bytes() != site.content
    assert response.headers["content-disposition"] == f'attachment; filename="{subset.name}"'
    assert site.http.get(URL).json()["code"] == "not_cached"

    assert site.ensure().read_bytes() == site.content


@pytest.mark.parametrize("damage", ["link", "folder", "truncated", "flipped"])
def test_what_is_not_the_published_file_is_not_sent(site: FileSite, damage: str, tmp_path: Path) -> None:
    aside = site.path.rename(site.path.with_name("aside"))
    if damage == "link":
        site.path.symlink_to("/etc/hostname")
    elif damage == "folder":
        site.path.mkdir()
    elif damage == "truncated":
        site.path.write_bytes(site.content[:-1])
    else:
        site.path.write_bytes(site.content[:-1] + bytes([site.content[-1] ^ 1]))

    try:
        response = site.http.get(URL)
    finally:
        if damage == "folder":
            site.path.rmdir()
        aside.replace(site.path)

    assert response.json()["code"] == "not_cached"
    assert site.http.get(URL).content == site.content


def test_no_descriptor_stays_open(site: FileSite) -> None:
    def open_files() -> list[str]:
        folder = Path(f"/proc/{site.service.pid}/fd")
        found = [str(link.readlink()) for link in folder.iterdir() if os.path.lexists(link)]
        return [name for name in found if re.search(r"crop_\d+.*\.h5", name)]

    for headers in ({}, {"Range": "bytes=0-0"}, {"Range": "bytes=-0"}, {"If-Match": '"x"'}, {"If-None-Match": "*"}):
        site.http.get(URL, headers=headers)
        site.http.head(URL, headers=headers)
    with site.http.stream("GET", URL):
        pass

    # A client has its response a moment before the file is closed; one that leaves early is noticed a little later.
    eventually(lambda: not open_files(), "every file is closed")
