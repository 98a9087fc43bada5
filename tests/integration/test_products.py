"""Context and products, from the bucket to the path that a client gets: embedded, and through a service."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from prismcache import Crop, PrismClient, RequestError
from prismcache.config import Settings
from prismcache.layout import Manifest, manifest_path
from prismcache.schema import Job, Product, Split, State, Verdict
from tests.support import products_oracle as oracle
from tests.support.cache_root import Lab, published, quarantined, tiny_spec
from tests.support.labs import running_lab
from tests.support.oracle import reference_crop
from tests.support.service import Service, service_config
from tests.support.service_jobs import Desk

SPEC, SEMANTIC = tiny_spec(2), tiny_spec(0, "semantic")
PRODUCTS = ("unlabelled", "avg_barcodes")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with running_lab(tmp_path, [SPEC, SEMANTIC]) as running:
        yield running


@pytest.fixture(params=["embedded", "service", "download"])
def client(request: pytest.FixtureRequest, lab: Lab, tmp_path: Path) -> Iterator[PrismClient]:
    if request.param == "embedded":
        with PrismClient(settings=lab.settings()) as embedded:
            yield embedded
        return
    with Service(service_config(lab.settings(), tmp_path / "state")) as service:
        mount = {"root": lab.root} if request.param == "service" else {}
        settings = Settings.load({}, url=service.url, downloads=tmp_path / "downloads", **mount)
        with PrismClient(settings=settings) as remote:
            yield remote


def test_raw_with_context_is_fetched_once_and_serves_less_but_never_none(client: PrismClient, lab: Lab) -> None:
    (path,) = client.ensure("instance", 2, context=(2, 3, 4), progress=False)
    assert Path(path).name == "crop_2.ctx2-3-4.h5"
    plain = reference_crop(lab.source(SPEC))
    with Crop(path) as crop:
        assert crop.context == ((2, 3, 4), (2, 3, 4))
        inner = np.s_[2:-2, 3:-3, 4:-4]
        for channel in crop.channels:
            np.testing.assert_array_equal(crop.channel(channel)[inner], plain.raw[channel])
    lab.proxy.clear()
    assert client.ensure("instance", 2, context=1, progress=False) == [path]
    assert client.ensure("instance", 2, context=(2, 0, 4), channels=1, progress=False) == [path]
    assert not lab.fetched(SPEC)
    (without,) = client.ensure("instance", 2, progress=False)
    (everything,) = client.ensure("instance", 2, context="all", channels=[0, 2], progress=False)
    assert [Path(each).name for each in (without, everything)] == ["crop_2.h5", "crop_2.ch00_02.ctx-all.h5"]
    with Crop(everything) as crop:
        assert (crop.raw_shape, crop.channels) == (SPEC.raw_shape, (0, 2))
    with Crop(without) as crop:
        assert crop.raw_shape == crop.shape


def test_a_product_is_made_with_its_crop_in_one_call_and_then_found(client: PrismClient, lab: Lab) -> None:
    plain = reference_crop(lab.source(SPEC))
    (path,) = client.ensure("instance", 2, product="avg_barcodes", progress=False)
    with h5py.File(path) as file:
        found = np.stack([file[f"avg_barcodes/ch_{c:02d}"][()] for c in range(SPEC.channels)])
    np.testing.assert_array_equal(found, oracle.avg_barcodes(plain.raw, plain.labels))
    assert {"instance/crop_2.h5", "instance/crop_2.avg_barcodes.h5"} <= {str(p) for p in published(lab.root)}
    lab.proxy.clear()
    assert client.ensure("instance", 2, product="avg_barcodes", progress=False) == [path]
    (facts,) = client.ensure("instance", 2, product="facts", progress=False)
    assert json.loads(Path(facts).read_text())["labels"] == plain.labels.max()
    (mask,) = client.ensure("semantic", 0, product="border_mask", progress=False)
    classes = reference_crop(lab.source(SEMANTIC))
    with h5py.File(mask) as file:
        expected = oracle.border_mask(classes.source_labels, classes.resolution)
        np.testing.assert_array_equal(file["border_mask"][()], expected)
    assert not lab.fetched(SPEC)
    manifest = Manifest.model_validate_json(
        (lab.root / manifest_path(Split.INSTANCE, 2, product=Product.AVG_BARCODES)).read_bytes()
    )
    crop = Manifest.model_validate_json((lab.root / manifest_path(Split.INSTANCE, 2)).read_bytes())
    assert (manifest.product, manifest.crop_sha256) == (Product.AVG_BARCODES, crop.sha256)
    with pytest.raises(RequestError, match="'fgbg' exists for semantic crops only"):
        client.ensure("instance", 2, product="fgbg", progress=False)
    with pytest.raises(RequestError, match="there is no product 'masks'"):
        client.ensure("instance", 2, product="masks", progress=False)


@pytest.mark.parametrize("client", ["embedded", "service"], indirect=True)
def test_one_job_shows_the_progress_of_the_crop_and_then_that_of_the_product(client: PrismClient, lab: Lab) -> None:
    seen: list[Job] = []
    client.ensure("instance", 2, product="avg_barcodes", progress=seen.append)
    assert len({job.id for job in seen}) == 1
    figures = [crop for job in seen for crop in job.crops]
    last = figures[-1]
    assert (last.state, last.objects_done, last.bytes_done) == (State.DONE, last.objects_total, last.bytes_total)
    assert last.objects_total > 0
    assert last.voxels_done == last.voxels_total == 2 * math.prod(SPEC.labels_shape)  # two passes
    for before, after in itertools.pairwise(figures):
        assert (after.bytes_done, after.voxels_done) >= (before.bytes_done, before.voxels_done)
    assert all(crop.bytes_done == crop.bytes_total for crop in figures if crop.voxels_total)
    seen.clear()
    client.ensure("instance", 2, product="facts", progress=seen.append)
    last = seen[-1].crops[0]
    assert (last.bytes_total, last.voxels_done) == (0, math.prod(SPEC.labels_shape))


def test_fifty_clients_that_want_a_product_of_a_service_have_it_made_once(lab: Lab, tmp_path: Path) -> None:
    config = service_config(lab.settings(workers=2), tmp_path / "state")
    with Service(config) as service, ThreadPoolExecutor(50) as pool:

        def ensure(number: int) -> str:
            settings = Settings.load({}, url=service.url, root=lab.root, downloads=tmp_path / "downloads")
            with PrismClient(settings=settings) as client:
                return client.ensure("instance", 2, product=PRODUCTS[number % 2], progress=False)[0]

        assert len(set(pool.map(ensure, range(50)))) == len(PRODUCTS)
        with Desk(service) as desk:
            text = desk.http.get("/metrics").text
        assert f'prismcache_task_duration_seconds_count{{outcome="done"}} {len(PRODUCTS)}.0' in text
    chunks = {key: count for key, count in lab.fetched(SPEC).items() if "/." not in key}  # the catalog reads metadata
    assert set(chunks.values()) == {1}


@pytest.mark.parametrize("client", ["embedded"], indirect=True)
def test_products_are_verified_repaired_and_removed_like_crops(client: PrismClient, lab: Lab) -> None:
    (path,) = client.ensure("instance", 2, product="unlabelled", progress=False)
    (facts,) = client.ensure("instance", 2, product="facts", progress=False)
    good = Path(path).read_bytes()
    Path(path).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    verdicts = {Path(result.path).name: result.verdict for result in client.verify("instance", repair=True)}
    assert verdicts == {
        "crop_2.h5": Verdict.OK,
        "crop_2.facts.json": Verdict.OK,
        "crop_2.unlabelled.h5": Verdict.REPAIRED,
    }
    assert Path(path).read_bytes() == good
    assert len(quarantined(lab.root)) == 1
    Path(path).write_bytes(good[:100])
    assert client.ensure("instance", 2, product="unlabelled", progress=False) == [path]
    assert Path(path).read_bytes() == good
    assert len(quarantined(lab.root)) == 2
    client.remove("instance", 2)
    assert not Path(path).exists()
    assert not Path(facts).exists()


@pytest.mark.parametrize("client", ["embedded"], indirect=True)
def test_a_product_of_another_file_of_the_crop_is_made_again(client: PrismClient, lab: Lab) -> None:
    (path,) = client.ensure("instance", 2, product="unlabelled", progress=False)
    place = lab.root / manifest_path(Split.INSTANCE, 2, product=Product.UNLABELLED)
    manifest = Manifest.model_validate_json(place.read_bytes())
    place.write_text(manifest.model_copy(update={"crop_sha256": "0" * 64}).model_dump_json())
    assert client.ensure("instance", 2, product="unlabelled", progress=False) == [path]
    assert Manifest.model_validate_json(place.read_bytes()).crop_sha256 == manifest.crop_sha256
