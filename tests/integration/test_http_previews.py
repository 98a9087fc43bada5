"""Previews over HTTP: what they show, what they cost, and what has none."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from tests.support.cache_root import tiny_spec
from tests.support.processes import eventually
from tests.support.site import Site, running_site

SPEC = tiny_spec(0)
SUBSET = tiny_spec(1)
URL = "/v1/crops/instance/0/preview.png"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A service with crop 0 and channel 1 of crop 1 in its cache."""
    with running_site(tmp_path_factory.mktemp("previews"), [SPEC, SUBSET]) as found:
        found.ensure()
        found.ensure(crops=[1], channels=[1])
        yield found


def test_it_shows_the_middle_slice_with_labels_in_colour(site: Site) -> None:
    response = site.http.get(URL, params={"channel": 2})

    assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
    picture = np.asarray(Image.open(io.BytesIO(response.content)))
    with h5py.File(site.lab.cached(SPEC)) as file:
        middle = file["labels"].shape[0] // 2
        raw, labels = file["raw/ch_02"][middle], file["labels"][middle]
    assert picture.shape == (*labels.shape, 3)
    background = picture[labels == 0].astype(int)
    assert (np.ptp(background, axis=1) == 0).all()
    assert np.corrcoef(background[:, 0], raw[labels == 0])[0, 1] > 0.9
    assert (np.ptp(picture[labels > 0].astype(int), axis=1) > 0).mean() > 0.9


def test_it_is_drawn_once_and_known_by_its_etag(site: Site) -> None:
    first = site.http.get(URL)
    again = site.http.get(URL)
    other = site.http.get(URL, params={"channel": 1})
    known = site.http.get(URL, headers={"If-None-Match": first.headers["etag"]})

    assert (first.content, first.headers["etag"]) == (again.content, again.headers["etag"])
    assert again.elapsed < first.elapsed
    assert other.headers["etag"] != first.headers["etag"]
    assert (known.status_code, known.content, known.headers["etag"]) == (304, b"", first.headers["etag"])


def test_a_subset_shows_its_channels(site: Site) -> None:
    url = "/v1/crops/instance/1/preview.png"

    assert site.http.get(url, params={"channel": 1}).status_code == 200
    assert site.http.get(url).json()["code"] == "not_cached"


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/crops/instance/7/preview.png", 404, "not_cached"),
        (f"{URL}?channel=3", 404, "not_cached"),
        (f"{URL}?channel=-1", 422, "invalid_request"),
        (f"{URL}?channel=010", 422, "invalid_request"),
        (f"{URL}?size=100000", 422, "invalid_request"),
        ("/v1/crops/other/0/preview.png", 422, "unknown_split"),
    ],
)
def test_what_has_no_preview(site: Site, path: str, status: int, code: str) -> None:
    response = site.http.get(path)

    assert (response.status_code, response.json()["code"]) == (status, code)


def test_drawing_leaves_no_process_behind(site: Site) -> None:
    site.http.get(URL)

    children = Path(f"/proc/{site.service.pid}/task/{site.service.pid}/children")
    workers = 1  # that made the crops
    eventually(lambda: len(children.read_text().split()) <= workers, "what draws has ended")
