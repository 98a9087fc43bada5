"""A cached crop as OME-Zarr over HTTP: real readers, conditional and partial requests, and pages of other origins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import zarr

from prismcache import Crop, PrismClient
from tests.support.cache_root import tiny_spec
from tests.support.oracle import ReferenceCrop, reference_crop
from tests.support.processes import eventually
from tests.support.site import Site, running_site

SPEC = tiny_spec(0)
URL = "/v1/crops/instance/0/zarr"
VIEWER = "https://viewer.example"


@dataclass(frozen=True)
class ZarrSite(Site):
    """A service with one cached crop, of which `expected` is in the bucket."""

    expected: ReferenceCrop


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZarrSite]:
    with running_site(tmp_path_factory.mktemp("zarr"), [SPEC], cors_origins=VIEWER) as found:
        found.ensure()
        yield ZarrSite(found.lab, found.service, found.http, reference_crop(found.lab.source(SPEC)))


def test_zarr_reads_a_crop_by_url(site: ZarrSite) -> None:
    image = zarr.open_group(f"{site.service.url}{URL}", mode="r", zarr_format=2)
    assert np.array_equal(image["0"][:], site.expected.raw)
    labels, ids = image["labels/instance/0"][:], image["labels_ids"][:]
    assert np.array_equal(ids[labels], site.expected.source_labels)


def test_chunks_are_sent_as_they_lie_in_the_file(site: ZarrSite) -> None:
    whole = site.http.get(f"{URL}/0/1.0.0.0")
    with Crop(site.lab.cached(SPEC)) as crop:
        assert whole.content == crop.zarr_store()._store_dict["0/1.0.0.0"].to_bytes()
    assert whole.headers["content-type"] == "application/octet-stream"

    part = site.http.get(f"{URL}/0/1.0.0.0", headers={"Range": "bytes=3-9"})
    assert (part.status_code, part.content) == (206, whole.content[3:10])
    assert part.headers["content-range"] == f"bytes 3-9/{len(whole.content)}"
    known = site.http.get(f"{URL}/0/1.0.0.0", headers={"If-None-Match": whole.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")
    head = site.http.head(f"{URL}/0/1.0.0.0")
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(whole.content)))
    beyond = site.http.get(f"{URL}/0/1.0.0.0", headers={"Range": "bytes=99999999-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(whole.content)}")


@pytest.mark.parametrize(
    "path",
    [
        f"{URL}/0/99.0.0.0",
        f"{URL}/0/.zgroup",
        f"{URL}/..%2f..%2fcrop_0.h5",
        f"{URL}/",
        "/v1/crops/instance/1/zarr/.zattrs",
    ],
)
def test_what_is_absent_is_not_found(site: ZarrSite, path: str) -> None:
    response = site.http.get(path)
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", [f"{URL}/.zattrs", f"{URL}/0/99.0.0.0", "/nothing"])
def test_pages_of_an_allowed_origin_may_read_every_response(site: ZarrSite, path: str) -> None:
    allowed = site.http.get(path, headers={"Origin": VIEWER})
    assert allowed.headers["access-control-allow-origin"] == VIEWER
    stranger = site.http.get(path, headers={"Origin": "https://stranger.example"})
    assert "access-control-allow-origin" not in stranger.headers
    asked = site.http.options(
        path,
        headers={"Origin": VIEWER, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "range"},
    )
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, VIEWER)


def test_an_evicted_crop_is_no_longer_served(site: ZarrSite) -> None:
    with PrismClient(url=site.service.url) as client:
        client.ensure("instance", 0, progress=False)
    assert site.http.get(f"{URL}/.zgroup").status_code == 200
    # The client's retention lease ends in the background.
    eventually(lambda: site.http.delete("/v1/crops/instance/0").is_success, "the crop is no longer leased")

    def gone() -> bool:
        return site.http.get(f"{URL}/.zgroup").status_code == 404

    eventually(gone, "the evicted crop is no longer served")
    with PrismClient(url=site.service.url) as client:
        client.ensure("instance", 0, progress=False)
    assert site.http.get(f"{URL}/.zgroup").status_code == 200  # the service ends with an open face
