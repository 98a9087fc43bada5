"""A crop that changes in the bucket while it is fetched: begun again once, never mixed of two versions."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from prismcache import PrismClient, SourceChangedError
from tests.support import products_oracle
from tests.support.cache_root import Lab, many_objects_spec, published, unfinished
from tests.support.crops import write_crop
from tests.support.faults import Before
from tests.support.labs import running_lab
from tests.support.oracle import assert_crop_file_equals_oracle, reference_crop

TIMEOUT = 2.0
VERSIONS = [dataclasses.replace(many_objects_spec(), seed=seed) for seed in range(3)]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with running_lab(tmp_path, VERSIONS[:1], bucket_changes=True) as lab:
        yield lab


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The crop's folders in three versions, outside of the bucket."""
    return [write_crop(tmp_path_factory.mktemp("version"), spec) for spec in VERSIONS]


def _replace(lab: Lab, by: Path) -> None:
    """Put another version of the crop into the bucket."""
    shutil.copytree(by, lab.source(VERSIONS[0]), dirs_exist_ok=True)


@pytest.mark.parametrize("skip", [0, 4, 50, 107], ids=["metadata", "first-chunk", "half-way", "last-chunk"])
def test_a_change_means_the_new_version_in_whole(lab: Lab, versions: list[Path], skip: int) -> None:
    lab.proxy.add(Before(lambda: _replace(lab, versions[1])), key="crop_0", skip=skip, times=1)
    with PrismClient(settings=lab.settings(s3_object_timeout=TIMEOUT)) as client:
        client.ensure("instance", 0, progress=False)
    assert_crop_file_equals_oracle(lab.cached(VERSIONS[0]), versions[1])
    listings = [seen for seen in lab.proxy.requests if seen.listing]
    assert len(listings) == 2
    assert unfinished(lab.root) == []


def test_a_product_is_made_from_the_version_that_is_cached(lab: Lab, versions: list[Path]) -> None:
    """One that is fetched for it may change meanwhile; one that is cached stays as it is."""
    lab.proxy.add(Before(lambda: _replace(lab, versions[1])), key="crop_0", skip=50, times=1)
    with PrismClient(settings=lab.settings(s3_object_timeout=TIMEOUT)) as client:
        [unlabelled] = client.ensure("instance", 0, product="unlabelled", progress=False)
        lab.proxy.clear()
        assert_crop_file_equals_oracle(lab.cached(VERSIONS[0]), versions[1])
        _replace(lab, versions[2])
        [barcodes] = client.ensure("instance", 0, product="avg_barcodes", progress=False)
        expected = reference_crop(versions[1])
        with h5py.File(unlabelled) as file, h5py.File(barcodes) as means:
            assert np.array_equal(file["unlabelled"][...], expected.labels > 0)
            found = np.stack(list(means["avg_barcodes"].values()))
            assert np.array_equal(found, products_oracle.avg_barcodes(expected.raw, expected.labels))
        client.remove("instance", 0)
        [unlabelled] = client.ensure("instance", 0, product="unlabelled", progress=False)
        with h5py.File(unlabelled) as file:
            assert np.array_equal(file["unlabelled"][...], reference_crop(versions[2]).labels > 0)
    assert unfinished(lab.root) == []


def test_raw_with_context_is_never_of_two_versions(lab: Lab, versions: list[Path]) -> None:
    lab.proxy.add(Before(lambda: _replace(lab, versions[1])), key="crop_0", skip=50, times=1)
    with PrismClient(settings=lab.settings(s3_object_timeout=TIMEOUT)) as client:
        [path] = client.ensure("instance", 0, context="all", progress=False)
    raw = zarr.open_array(versions[1] / "raw", mode="r")[...]
    with h5py.File(path) as file:
        assert np.array_equal(np.stack(list(file["raw"].values())), raw)
        assert np.array_equal(file["labels"][...], reference_crop(versions[1]).labels)


def test_changing_twice_is_an_error(lab: Lab, versions: list[Path]) -> None:
    lab.proxy.add(Before(lambda: _replace(lab, versions[1])), key="crop_0", skip=30, times=1)
    lab.proxy.add(Before(lambda: _replace(lab, versions[2])), key="raw/.zarray", skip=1, times=1)
    with (
        PrismClient(settings=lab.settings(s3_object_timeout=TIMEOUT)) as client,
        pytest.raises(SourceChangedError, match=r"instance/crop_0\.zarr changed while it was fetched, twice"),
    ):
        client.ensure("instance", 0, progress=False)
    assert published(lab.root) == unfinished(lab.root) == []
    lab.proxy.clear()
    with PrismClient(settings=lab.settings()) as client:
        client.ensure("instance", 0, progress=False)
    assert_crop_file_equals_oracle(lab.cached(VERSIONS[0]), versions[2])


def test_objects_that_vanish_after_the_listing_and_are_gone_from_the_next(lab: Lab) -> None:
    """The new listing is the truth: what it lacks is the fill value, counted."""
    chunk = lab.source(VERSIONS[0]) / "raw/2.1.1.1"
    lab.proxy.add(Before(chunk.unlink), key="labels/.zattrs", times=1)
    with PrismClient(settings=lab.settings()) as client, pytest.warns(UserWarning, match="1 chunk is absent"):
        [file] = client.ensure_files("instance", 0, progress=False)
    assert file.missing_chunks == 1
    assert_crop_file_equals_oracle(lab.cached(VERSIONS[0]), lab.source(VERSIONS[0]))


def test_a_cached_crop_stays_as_it_is_when_the_source_changes(lab: Lab, versions: list[Path]) -> None:
    with PrismClient(settings=lab.settings()) as client:
        client.ensure("instance", 0, progress=False)
        _replace(lab, versions[1])
        client.ensure("instance", 0, progress=False)
        assert_crop_file_equals_oracle(lab.cached(VERSIONS[0]), versions[0])
        with h5py.File(lab.cached(VERSIONS[0]), "r", locking=False) as file:
            old = file.attrs["source_fingerprint"]
        client.remove("instance", 0)
        client.ensure("instance", 0, progress=False)
    assert_crop_file_equals_oracle(lab.cached(VERSIONS[0]), versions[1])
    with h5py.File(lab.cached(VERSIONS[0]), "r", locking=False) as file:
        assert re.fullmatch("[0-9a-f]{64}", file.attrs["source_fingerprint"])
        assert file.attrs["source_fingerprint"] != old
