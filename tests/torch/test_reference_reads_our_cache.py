"""torch_em's own loader takes the cache folder as its `path`, unchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch_em.data.datasets.light_microscopy.e11bio import get_e11bio_data, get_e11bio_loader

from prismcache import PrismClient
from tests.support.bucket import standard_specs
from tests.support.crops import crop_folder
from tests.support.oracle import reference_crop
from tests.support.s3 import S3Server

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def cache(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with instance crops of unequal channel counts and a semantic crop."""
    root = tmp_path_factory.mktemp("cache")
    with PrismClient(root, s3_endpoint_url=s3_server.endpoint) as client:
        client.ensure("instance", [0, 5], progress=False)
        client.ensure("semantic", [0], progress=False)
    return root


@pytest.mark.parametrize(("split", "crops"), [("instance", [0, 5]), ("instance", [5]), ("semantic", [0])])
def test_the_reference_finds_every_crop_without_a_download(cache: Path, split: str, crops: list[int]) -> None:
    paths = get_e11bio_data(cache, split, crops, download=False)
    assert paths == [str(cache / split / f"crop_{crop}.h5") for crop in crops]


def test_the_reference_still_misses_what_is_not_cached(cache: Path) -> None:
    with pytest.raises(RuntimeError, match="No cached data"):
        get_e11bio_data(cache, "instance", [12], download=False)


def test_a_patch_of_the_whole_crop_holds_the_voxels_of_the_source(cache: Path, bucket_dir: Path) -> None:
    spec = next(spec for spec in standard_specs() if (spec.split, spec.crop) == ("instance", 5))
    expected = reference_crop(crop_folder(bucket_dir, spec))
    shape = expected.labels.shape
    loader = get_e11bio_loader(
        cache, shape, 1, crop_ids=[5], channel=3, num_workers=0, n_samples=1, raw_transform=lambda raw: raw,
        label_transform=lambda labels: labels, label_dtype=torch.int64, pin_memory=False,
    )  # fmt: skip
    raw, labels = next(iter(loader))
    # torch_em flips and rotates at random; the pairs of raw and label stay.
    found = np.stack([raw[0, 0].numpy().ravel(), labels[0, 0].numpy().ravel()])
    voxels = np.stack([expected.raw[3].ravel(), expected.labels.ravel()])
    assert np.array_equal(found[:, np.lexsort(found)], voxels[:, np.lexsort(voxels)])
