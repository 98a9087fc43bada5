"""PrismDataset over synapse crops, whose targets lie in the file, and over a split of a lab's own catalog."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prismcache import PrismClient, RequestError
from prismcache.testing import InMemoryService
from prismcache.torch import PrismDataset
from prismcache.torch.crop_facts import CropFacts
from tests.support import own_splits
from tests.support.crops import BUCKET
from tests.support.s3 import S3Server

PATCH = (10, 12, 10)
TARGETS = ("psd95_output", "psd95_weights")
SYNAPSES = own_splits.synapse_arrays()
MITO = own_splits.lab_arrays()


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("s3")
    (folder / BUCKET).mkdir()
    own_splits.write_synapses(folder, SYNAPSES)
    own_splits.write_lab_crop(folder, MITO)
    with S3Server(folder) as server:
        yield server.endpoint


@pytest.fixture(scope="module")
def client(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrismClient]:
    folder = tmp_path_factory.mktemp("lab")
    catalog = folder / "lab.toml"
    catalog.write_text(own_splits.LAB_CATALOG)
    with PrismClient(folder / "root", s3_endpoint_url=endpoint, catalog=catalog, decoded=folder / "decoded") as client:
        yield client


def expected(name: str, start: tuple[int, int, int]) -> np.ndarray:
    voxels, first = SYNAPSES[name]
    z, y, x = (slice(a - b, a - b + n) for a, b, n in zip(start, first, PATCH, strict=True))
    return voxels[z, y, x][None]


@pytest.mark.parametrize("cache", ["none", "ram", "mmap"])
def test_patches_of_synapses_are_those_of_numpy(client: PrismClient, cache) -> None:
    dataset = PrismDataset(
        client, "synapses", patch_shape=PATCH, context=(4, 8, 8), channels="all", targets=TARGETS, sampling="grid",
        cache=cache, dtype=torch.float64, progress=False,
    )  # fmt: skip
    assert len(dataset) == 2 * 4 * 4  # the targets' box, (20, 44, 40)
    for number, start in ((0, (6, 10, 12)), (len(dataset) - 1, (16, 42, 42))):
        raw, *targets = dataset[number]
        z, y, x = (slice(a - c, a + n + c) for a, n, c in zip(start, PATCH, (4, 8, 8), strict=True))
        np.testing.assert_array_equal(raw, SYNAPSES["ls_2channels_globalnorm"][0][:, z, y, x])
        for name, target in zip(TARGETS, targets, strict=True):
            np.testing.assert_array_equal(target, expected(name, start).astype(np.float64))


def test_random_patches_are_drawn_where_every_target_has_voxels(client: PrismClient, tmp_path: Path) -> None:
    (path,) = client.ensure("synapses", progress=False)
    seen = []

    def sampler(raw: np.ndarray, output: np.ndarray, *_: np.ndarray) -> bool:
        seen.append((raw.shape, output.dtype))
        return True

    dataset = PrismDataset(
        path, patch_shape=(6, 8, 8), targets=[*TARGETS, "psd95_underseg"], sampler=sampler, n_samples=3
    )
    assert [[each.shape for each in sample] for sample in dataset] == [[(1, 6, 8, 8)] * 4] * 3
    assert seen == [((6, 8, 8), np.uint64)] * 3
    assert dataset.wait().crops == (0,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": "psd95"}, "targets of split 'synapses' are psd95_output, psd95_mask"),
        ({"targets": "unlabelled"}, "split 'synapses' has no product 'unlabelled'"),
        ({"label_values": "original"}, "crops of 'synapses' have no labels"),
        ({"targets": "psd95_underseg", "patch_shape": (11, 8, 8)}, r"larger than synapses crop 0 \(10, 20, 20\)"),
    ],
)
def test_what_synapses_do_not_have_is_refused(client: PrismClient, options, message) -> None:
    with pytest.raises(RequestError, match=message):
        PrismDataset(client, "synapses", progress=False, **({"patch_shape": (4, 4, 4)} | options))


def test_a_labs_split_has_labels_arrays_and_products(client: PrismClient) -> None:
    dataset = PrismDataset(
        client, "mito", patch_shape=(18, 40, 36), targets=["mask", "unlabelled"], sampling="grid", progress=False
    )
    raw, labels, mask, unlabelled = dataset[0]
    np.testing.assert_array_equal(raw[0], MITO["image"][0])
    np.testing.assert_array_equal(labels[0], MITO["mito"])  # classes: original ids
    np.testing.assert_array_equal(mask[0], MITO["mask"])
    np.testing.assert_array_equal(unlabelled[0], MITO["mito"] > 0)


def test_sets_overlap_where_they_share_a_crop_or_its_tissue(tmp_path: Path) -> None:
    catalog = tmp_path / "lab.toml"
    tissue = 'same_tissue = { 0 = "instance/0", 3 = "semantic/0" }'
    catalog.write_text(own_splits.LAB_CATALOG.replace('same_tissue = { 0 = "instance/0" }', tissue))
    crops = dict.fromkeys(
        [("mito", 0), ("mito", 1), ("mito", 3), ("instance", 0), ("instance", 2), ("synapses", 0)], ...
    )
    with InMemoryService(crops, catalog=catalog) as service, service.client() as client:

        def open_set(split: str, *crops: int, **options: Any) -> PrismDataset:
            return PrismDataset(client, split, crops=crops, patch_shape=(2, 4, 4), progress=False, **options)

        first, second = open_set("mito", 0, 1, start="all"), open_set("mito", 1, 3, start="all")
        for one, other, shared in [
            (first, second, True),  # crop 1, of which each draws its own patches
            (first, open_set("mito", 0, n_samples=1), True),
            (first, open_set("instance", 0), True),
            (first, open_set("instance", 2), False),
            (second, open_set("instance", 2), True),  # mito 3 is semantic 0, which is instance 2
            (first, open_set("synapses", 0), False),
            (second, open_set("mito", 0), False),
        ]:
            assert (one.overlaps(other), other.overlaps(one)) == (shared, shared)
        awaited = CropFacts.expected(client.describe("mito", 3), (0, 0, 0)).entry
        assert (awaited.classes, awaited.arrays) == (True, ("mask",))
        assert awaited.same_tissue == ((3, "instance/2"), (3, "semantic/0"))
