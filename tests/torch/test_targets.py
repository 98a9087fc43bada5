"""`PrismDataset(targets=…)`: products as further tensors, from files beside the crops and through a client."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from prismcache import CropCorruptError, CropNotCachedError, PrismClient, RequestError
from prismcache._testing_files import CropArrays, write_crop, write_product
from prismcache.schema import Product, Split
from prismcache.torch import PrismDataset
from tests.support import products_oracle as oracle
from tests.support.faults import FaultProxy, Stall

pytestmark = pytest.mark.torch

SHAPE = (10, 30, 28)
PATCH = (4, 12, 12)
PRODUCTS = (Product.UNLABELLED, Product.AVG_BARCODES, Product.BORDER_MASK)


def crop_arrays() -> CropArrays:
    """Raw whose first channel and plane tell where each voxel lies; blocks of semantic classes."""
    noise = np.random.default_rng(3)
    raw = noise.integers(0, 256, (2, *SHAPE), np.uint8)
    ids = np.array([0, 1, 3, 5, 10], np.uint64)[noise.integers(0, 5, (2, 3, 4))]
    return CropArrays(raw, ids.repeat(5, 0).repeat(10, 1).repeat(7, 2))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A semantic crop with its products beside it."""
    path = Path(write_crop(tmp_path, Split.SEMANTIC, 0, crop_arrays()).path)
    for product in PRODUCTS:
        write_product(tmp_path, Split.SEMANTIC, 0, crop_arrays(), product)
    return path


def check(dataset: PrismDataset, path: Path) -> int:
    """Check that targets are the voxels of the product files where raw and labels are; return the number of places."""
    whole = crop_arrays()
    raw_voxels = torch.from_numpy(whole.raw)
    with h5py.File(path.with_name("crop_0.avg_barcodes.h5")) as file:
        barcodes = np.stack([file[f"avg_barcodes/ch_{c:02d}"][()] for c in dataset.channels])
    np.testing.assert_array_equal(barcodes, oracle.avg_barcodes(whole.raw, whole.labels)[list(dataset.channels)])
    border = oracle.border_mask(whole.labels, (400, 168, 168))
    boxes = raw_voxels[dataset.channels[0]].unfold(0, PATCH[0], 1).unfold(1, PATCH[1], 1).unfold(2, PATCH[2], 1)
    seen = set()
    for raw, labels, found, unlabelled, mask in dataset:
        ((z, y, x),) = (boxes == raw[0].byte()).flatten(3).all(3).nonzero().tolist()
        seen.add((z, y, x))
        box = np.s_[z : z + PATCH[0], y : y + PATCH[1], x : x + PATCH[2]]
        np.testing.assert_array_equal(labels[0], whole.labels[box])
        np.testing.assert_array_equal(found, barcodes[:, *box])
        np.testing.assert_array_equal(unlabelled[0], whole.labels[box] > 0)
        np.testing.assert_array_equal(mask[0], border[box])
        assert [each.dtype for each in (found, unlabelled, mask)] == [dataset.dtype] * 3
    return len(seen)


@pytest.mark.parametrize("cache", ["none", "ram", "mmap"])
def test_targets_follow_labels_voxel_for_voxel(path, cache, tmp_path) -> None:
    dataset = PrismDataset(
        path, patch_shape=PATCH, channels=[1, 0], targets=["avg_barcodes", "unlabelled", "border_mask"], cache=cache,
        cache_folder=tmp_path / "decoded", n_samples=12,
    )  # fmt: skip
    copy = pickle.loads(pickle.dumps(dataset))
    assert check(dataset, path) > 3
    dataset.set_epoch(0)
    for ours, theirs in zip(dataset, DataLoader(copy, batch_size=None, num_workers=1), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_an_augmentation_changes_targets_as_it_changes_raw(path) -> None:
    def flipped(*each):
        return [np.flip(one, -1).copy() for one in each]

    names = ["avg_barcodes", "unlabelled"]
    options = {"patch_shape": PATCH, "targets": names, "n_samples": 4}
    plain = PrismDataset(path, generator=torch.Generator().manual_seed(1), **options)
    augmented = PrismDataset(path, generator=torch.Generator().manual_seed(1), transform=flipped, **options)
    for one, other in zip(plain, augmented, strict=True):
        assert [each.shape for each in other] == [(1, *PATCH)] * 4
        assert all(torch.equal(a.flip(-1), b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("fgbg", CropNotCachedError, "prismcache ensure semantic 0 --product fgbg"),
        ("facts", RequestError, "targets must be names of products or arrays with voxels, not 'facts'"),
    ],
)
def test_a_target_that_is_not_there_is_a_typed_error(path, name, error, message) -> None:
    with pytest.raises(error) as raised:
        PrismDataset(path, patch_shape=PATCH, targets=["unlabelled", name])
    assert message in f"{raised.value} {raised.value.remedy}"


def test_a_product_of_another_version_of_the_crop_is_refused(path) -> None:
    with h5py.File(path.with_name("crop_0.unlabelled.h5"), "a") as file:
        file.attrs["crop_sha256"] = "0" * 64
    with pytest.raises(CropCorruptError, match="made from another version of the crop"):
        PrismDataset(path, patch_shape=PATCH, targets=["unlabelled"])


@pytest.fixture
def client(fault_proxy: FaultProxy, tmp_path: Path) -> Iterator[PrismClient]:
    with PrismClient(tmp_path / "root", s3_endpoint_url=fault_proxy.endpoint, decoded=tmp_path / "decoded") as client:
        yield client


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_a_client_makes_the_products_of_crops_that_are_there_and_of_late_ones(client, fault_proxy, cache) -> None:
    client.ensure("instance", 0, product="unlabelled", progress=False)
    stall = Stall()
    fault_proxy.add(stall, r"instance/crop_5\.zarr/raw/\d")
    dataset = PrismDataset(client, crops=[0, 5], patch_shape=PATCH, targets="unlabelled", n_samples=6, cache=cache)
    assert dataset.ready_crops == [0]
    stall.release()
    assert dataset.wait().ready_crops == [0, 5]
    for raw, labels, unlabelled in dataset:
        assert raw.shape == (1, *PATCH)
        assert torch.equal(unlabelled, (labels > 0).float())
    with pytest.raises(RequestError, match="'fgbg' exists for semantic crops only"):
        PrismDataset(client, crops=0, patch_shape=PATCH, targets="fgbg")
