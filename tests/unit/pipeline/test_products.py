"""Products equal their definitions, voxel for voxel, whatever the crop is like."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from scipy import ndimage

from prismcache.errors import CropCorruptError, MemoryLimitError, PrismError, RequestError
from prismcache.schema import Product, Split
from prismcache_service.pipeline.products import make_product
from prismcache_service.pipeline.products import slabs as slabs_module
from prismcache_service.pipeline.products.arrays import NearVoxels, barcode_labels
from prismcache_service.pipeline.products.slabs import columns
from tests.support import products_oracle as oracle
from tests.support.voxels import SMALL_TILE, LabelVoxels, RawVoxels

Array = np.ndarray[Any, np.dtype[Any]]
VOXEL_SIZE = (400, 168, 168)
SHAPE = (37, 90, 70)
OFFSET = (8000, 1680, 3360)
LIMIT = 10**10


def ids_of(split: Split) -> Array:
    kind = LabelVoxels((7,), SMALL_TILE, np.dtype(np.uint64), semantic=split is Split.SEMANTIC)
    ids = kind.block((0, 0, 0), SHAPE).astype(np.uint64)
    if split is Split.INSTANCE:
        ids[ids == ids.max()] = 2**64 - 1
    return ids


def write_crop(path: Path, raw: Array, ids: Array, split: Split) -> Array:
    """Write a crop's file as the contract says; return the consecutive labels."""
    table = np.union1d(np.zeros(1, np.uint64), ids)
    labels = np.searchsorted(table, ids).astype(np.uint32)
    with h5py.File(path, "w") as file:
        file.attrs.update({"crop_id": 2, "split": split.value, "num_channels": len(raw), "format_version": 1})
        file["labels_ids"] = table
        for name, voxels in [("labels", labels), *((f"raw/ch_{c:02d}", each) for c, each in enumerate(raw))]:
            dataset = file.create_dataset(name, data=voxels, chunks=(16, 64, 64), compression="gzip")
            for key, value in {"offset": OFFSET, "resolution": VOXEL_SIZE, "voxel_size": VOXEL_SIZE}.items():
                dataset.attrs[key] = value
    return labels


def raw_of(channels: int) -> Array:
    return RawVoxels((7,), SMALL_TILE).block(range(channels), (0, 0, 0), SHAPE)


def make(tmp_path: Path, product: Product) -> Path:
    target = tmp_path / f"{product.value}.tmp"
    sha256, size = make_product(tmp_path / "crop_2.h5", "5a" * 32, product, target, mode=0o644, memory_limit=LIMIT)
    assert sha256 == hashlib.sha256(target.read_bytes()).hexdigest()
    assert size == target.stat().st_size
    return target


@pytest.mark.parametrize(("split", "channels"), [(Split.INSTANCE, 18), (Split.INSTANCE, 12), (Split.SEMANTIC, 10)])
def test_barcodes_are_exact_means_and_within_one_of_floating_point(tmp_path: Path, split: Split, channels: int) -> None:
    raw = raw_of(channels)
    labels = write_crop(tmp_path / "crop_2.h5", raw, ids_of(split), split)
    with h5py.File(make(tmp_path, Product.AVG_BARCODES)) as file:
        found = np.stack([file[f"avg_barcodes/ch_{c:02d}"][()] for c in range(channels)])
        assert list(file["avg_barcodes"]) == [f"ch_{c:02d}" for c in range(channels)]
    np.testing.assert_array_equal(found, oracle.avg_barcodes(raw, labels))
    in_floats = oracle.avg_barcodes_in_floats(raw, labels).astype(int)
    assert np.abs(found - in_floats).max() <= 1


@pytest.mark.parametrize("split", [Split.INSTANCE, Split.SEMANTIC])
def test_unlabelled_is_where_labels_are(tmp_path: Path, split: Split) -> None:
    labels = write_crop(tmp_path / "crop_2.h5", raw_of(1), ids_of(split), split)
    with h5py.File(make(tmp_path, Product.UNLABELLED)) as file:
        np.testing.assert_array_equal(file["unlabelled"][()], oracle.unlabelled(labels))
        assert file["unlabelled"].dtype == np.uint8
        assert list(file["unlabelled"].attrs["offset"]) == list(OFFSET)
        assert list(file["unlabelled"].attrs["voxel_size"]) == list(VOXEL_SIZE)
        about = {key: file.attrs[key] for key in ("crop_id", "split", "product", "recipe", "crop_sha256")}
    assert about == {
        "crop_id": 2, "split": split.value, "product": "unlabelled", "recipe": "unlabelled-1", "crop_sha256": "5a" * 32,
    }  # fmt: skip


SPARSE = np.zeros(SHAPE, np.uint64)
SPARSE[5, 80:, 3] = 3
SPARSE[30, 10, 60:] = 6
SPARSE[30:, 40:60, 10:20] = 11


@pytest.mark.parametrize("column_bytes", [1, 2_000_000])
@pytest.mark.parametrize(
    "ids",
    [ids_of(Split.SEMANTIC), SPARSE, np.zeros(SHAPE, np.uint64), np.full(SHAPE, 3, np.uint64)],
    ids=["classes", "sparse", "no labels", "no background"],
)
def test_products_equal_those_of_the_whole_crop_however_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: Array, column_bytes: int
) -> None:
    monkeypatch.setattr(slabs_module, "_COLUMN_BYTES", column_bytes)
    raw = raw_of(1)
    labels = write_crop(tmp_path / "crop_2.h5", raw, ids, Split.SEMANTIC)
    expected = {
        "fgbg": oracle.fgbg(ids, VOXEL_SIZE),
        "border_mask": oracle.border_mask(ids, VOXEL_SIZE),
        "unlabelled": oracle.unlabelled(ids),
        "avg_barcodes/ch_00": oracle.avg_barcodes(raw, labels)[0],
    }
    for name, voxels in expected.items():
        with h5py.File(make(tmp_path, Product(name.partition("/")[0]))) as file:
            np.testing.assert_array_equal(file[name][()], voxels)


@given(
    arrays_of.arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)), fill=st.just(False)),
    st.tuples(*(st.sampled_from([4, 6, 7, 40_000]),) * 3),
    st.sampled_from([7, 12, 21, 35, 90_000]),
)
def test_near_voxels_are_those_of_scipys_distances(mask: Array, voxel_size: tuple[int, int, int], limit: int) -> None:
    for with_mask in (True, False):
        near = NearVoxels(mask.shape, limit, voxel_size, with_mask=with_mask)
        for z, plane in enumerate(mask):
            near.add(z, plane, np.s_[:, :])
        expected = ndimage.distance_transform_edt(~mask, sampling=voxel_size) < limit if mask.any() else mask
        np.testing.assert_array_equal(near.found(slice(None)), expected & (with_mask | ~mask))


@pytest.mark.parametrize("product", [Product.AVG_BARCODES, Product.FACTS, Product.BORDER_MASK])
def test_too_little_memory_is_a_typed_error_with_the_numbers(tmp_path: Path, product: Product) -> None:
    write_crop(tmp_path / "crop_2.h5", raw_of(1), ids_of(Split.SEMANTIC), Split.SEMANTIC)
    with pytest.raises(MemoryLimitError, match=r"needs \d+ MB of memory, the limit is 20 MB"):
        make_product(
            tmp_path / "crop_2.h5", "5a" * 32, product, tmp_path / "made.tmp", mode=0o644, memory_limit=20_000_000
        )
    assert not (tmp_path / "made.tmp").exists()


@pytest.mark.parametrize("ids", [np.zeros(SHAPE, np.uint64), np.full(SHAPE, 2**64 - 1, np.uint64)])
def test_a_crop_without_labels_or_without_background_has_its_products(tmp_path: Path, ids: Array) -> None:
    raw = raw_of(2)
    labels = write_crop(tmp_path / "crop_2.h5", raw, ids, Split.INSTANCE)
    with h5py.File(make(tmp_path, Product.AVG_BARCODES)) as file:
        found = np.stack([file[f"avg_barcodes/ch_{c:02d}"][()] for c in range(2)])
    np.testing.assert_array_equal(found, oracle.avg_barcodes(raw, labels))
    facts = json.loads(make(tmp_path, Product.FACTS).read_text())
    assert facts["foreground"] == float(ids.any())
    assert [neuron["id"] for neuron in facts["neurons"]] == ([2**64 - 1] if ids.any() else [])


@given(
    arrays_of.arrays(
        np.uint32,
        st.tuples(st.integers(1, 3), st.integers(1, 8), st.integers(1, 8)),
        elements=st.integers(0, 4),
    )
)
def test_labels_grow_as_in_scikit_image_and_are_eroded_one_by_one(labels: Array) -> None:
    np.testing.assert_array_equal(barcode_labels(labels), oracle.kept_labels(labels))


@pytest.mark.parametrize("product", [Product.FGBG, Product.BORDER_MASK])
def test_instance_crops_have_no_products_of_classes(tmp_path: Path, product: Product) -> None:
    write_crop(tmp_path / "crop_2.h5", raw_of(1), ids_of(Split.INSTANCE), Split.INSTANCE)
    with pytest.raises(RequestError, match=f"product '{product.value}' exists for semantic crops only"):
        make(tmp_path, product)
    assert not (tmp_path / f"{product.value}.tmp").exists()


def test_a_file_that_is_no_crop_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "crop_2.h5").write_bytes(b"not HDF5")
    with pytest.raises(PrismError) as raised:
        make(tmp_path, Product.UNLABELLED)
    assert isinstance(raised.value, CropCorruptError)


def test_facts_are_those_of_the_whole_arrays(tmp_path: Path) -> None:
    raw, ids = raw_of(3), ids_of(Split.SEMANTIC)
    labels = write_crop(tmp_path / "crop_2.h5", raw, ids, Split.SEMANTIC)
    facts = json.loads(make(tmp_path, Product.FACTS).read_text())
    table, counts = np.unique(ids, return_counts=True)
    sizes = counts[table > 0]
    assert facts["labels"] == len(sizes)
    assert facts["foreground"] == pytest.approx((ids > 0).mean())
    assert facts["classes"] == {str(i): n for i, n in zip(table.tolist(), counts.tolist(), strict=True)}
    assert facts["label_voxels"]["50"] == np.percentile(sizes, 50, method="inverted_cdf")
    for found, channel in zip(facts["channels"], raw, strict=True):
        assert (found["min"], found["max"]) == (channel.min(), channel.max())
        assert (found["mean"], found["std"]) == (pytest.approx(channel.mean()), pytest.approx(channel.std()))
        for share, value in found["percentiles"].items():
            assert value == np.percentile(channel, float(share), method="inverted_cdf")
    for neuron in facts["neurons"]:
        mask = labels == neuron["label"]
        places = np.argwhere(mask)
        assert (neuron["voxels"], neuron["id"]) == (mask.sum(), table[table > 0][neuron["label"] - 1])
        assert neuron["box"] == [[a, b + 1] for a, b in zip(places.min(0), places.max(0), strict=True)]
        assert neuron["centroid_nm"] == pytest.approx(list(OFFSET + places.mean(0) * VOXEL_SIZE))
        assert neuron["barcode"] == pytest.approx([channel[mask].mean() for channel in raw])


def test_two_runs_give_equal_bytes(tmp_path: Path) -> None:
    write_crop(tmp_path / "crop_2.h5", raw_of(2), ids_of(Split.INSTANCE), Split.INSTANCE)
    for product in (Product.AVG_BARCODES, Product.FACTS):
        first = make(tmp_path, product).read_bytes()
        (tmp_path / f"{product.value}.tmp").unlink()
        assert make(tmp_path, product).read_bytes() == first


@given(
    st.tuples(*(st.integers(1, 400),) * 2),
    st.tuples(*(st.integers(0, 30),) * 2),
    st.sampled_from([1, 30_000, 60_000, 10**6]),
)
def test_columns_cover_each_voxel_once_in_whole_chunks(shape: Any, margin: Any, most: int) -> None:
    seen = np.zeros(shape, np.uint8)
    for column in columns(shape, (64, 64), margin, most):
        seen[column.box] += 1
        assert all(part.start % 64 == 0 for part in column.box)
        for box, wide, inner, by, extent in zip(column.box, column.wide, column.inner, margin, shape, strict=True):
            assert (wide.start + inner.start, wide.start + inner.stop) == (box.start, box.stop)
            assert (wide.start, wide.stop) == (max(0, box.start - by), min(extent, box.stop + by))
        size, least = (seen[column.wide].size, np.prod([64 + 2 * by for by in margin]))
        assert size <= max(most, least)
    assert (seen == 1).all()
