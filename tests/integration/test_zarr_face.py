"""A cached crop is a zarr hierarchy: its chunks are ranges of the file, and zarr reads the right voxels from them."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import zarr

from prismcache import Crop, PrismClient, RequestError
from prismcache.crop.zarr_face import Span, ZarrFace
from prismcache.crop.zarr_store import FaceMapping
from tests.support.cache_root import Lab, tiny_spec
from tests.support.labs import running_lab
from tests.support.oracle import ReferenceCrop, reference_crop

SPECS = {"instance": tiny_spec(0), "semantic": tiny_spec(1, "semantic")}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("lab"), SPECS.values()) as lab:
        with PrismClient(settings=lab.settings()) as client:
            for split, spec in SPECS.items():
                client.ensure(split, spec.crop, progress=False)
        yield lab


@pytest.fixture(params=SPECS)
def opened(lab: Lab, request: pytest.FixtureRequest) -> Iterator[tuple[Crop, ReferenceCrop]]:
    spec = SPECS[request.param]
    with Crop(lab.cached(spec)) as crop:
        yield crop, reference_crop(lab.source(spec))


def test_zarr_reads_the_same_voxels_without_a_copy(opened):
    crop, expected = opened
    image = zarr.open_group(crop.zarr_store(), mode="r")
    split = crop.split.value
    assert np.array_equal(image["0"][:], expected.raw)
    labels = image[f"labels/{split}/0"]
    assert labels.dtype == np.uint32
    assert np.array_equal(image["labels_ids"][:][labels[:]], expected.source_labels)
    assert np.array_equal(image["0"][1, 2:5, 3:9, 1], expected.raw[1, 2:5, 3:9, 1])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_chunks_of_slices_are_whole_slices(opened, axis):
    crop, expected = opened
    group = f"slices/{'zyx'[axis]}"
    raw, labels = (zarr.open_group(crop.zarr_store(), mode="r")[f"{group}/{name}"] for name in ("raw", "labels"))
    one = tuple(1 if other == axis else extent for other, extent in enumerate(crop.shape))
    assert (raw.chunks, labels.chunks) == ((1, *one), one)
    assert np.array_equal(raw[:], expected.raw)
    assert np.array_equal(crop.labels_ids[labels[:]], expected.source_labels)
    beyond = ".".join(str(crop.shape[axis] if other == axis else 0) for other in range(3))
    aside = ".".join("0" if other == axis else "1" for other in range(3))
    absent = [f"raw/0.{beyond}", f"raw/0.{aside}", "raw/99.0.0.0", f"labels/{beyond}", f"labels/{aside}", "labels/0.0"]
    assert [key for key in absent if ZarrFace(crop).get(f"{group}/{key}") is not None] == []


def test_groups_for_neuroglancer_have_all_channels_in_a_chunk_and_original_ids(opened):
    crop, expected = opened
    image = zarr.open_group(crop.zarr_store(), mode="r")
    together, ids = image["all_channels/0"], image["original_ids/0"]
    assert together.chunks == (len(crop.channels), *crop.labels.chunks)
    assert np.array_equal(together[:], expected.raw)
    assert ids.dtype == np.uint64
    assert np.array_equal(ids[:], expected.source_labels)
    assert [name for name in ZarrFace(crop) if name.startswith(("all_channels", "original_ids"))] == []
    absent = ["all_channels/0/1.0.0.0", "all_channels/0/0.0.0", "all_channels/0/0.9999.0.0", "original_ids/0/9999.0.0",
              "original_ids/0/0.0.0.0", "all_channels/0.0.0.0", "other/0/0.0.0"]  # fmt: skip
    assert [key for key in absent if ZarrFace(crop).get(key) is not None] == []


def test_windows_are_those_of_the_facts(lab, tmp_path):
    with PrismClient(settings=lab.settings()) as client:
        path = client.ensure("instance", 0, progress=False)[0]
        with Crop(path) as crop:
            attributes = zarr.open_group(crop.zarr_store(), mode="r").attrs
            assert {channel["window"]["end"] for channel in attributes["omero"]["channels"]} == {255}
        client.ensure("instance", 0, product="facts", progress=False)
    with Crop(path) as crop:
        channels = zarr.open_group(crop.zarr_store(), mode="r").attrs["omero"]["channels"]
        shown = [(channel["window"]["start"], channel["window"]["end"]) for channel in channels]
        assert shown == list(crop.facts.windows().values())
        assert all(low < high for low, high in shown)


def test_metadata_place_the_crop(opened):
    crop, _ = opened
    image = zarr.open_group(crop.zarr_store(), mode="r")
    scale, translation = image.attrs["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert (scale["scale"], translation["translation"]) == ([1, *crop.voxel_size], [0, *crop.offset])
    assert image["0"].attrs["offset"] == list(crop.offset)
    assert [channel["active"] for channel in image.attrs["omero"]["channels"]] == [True, True, True]
    assert image.attrs["prismcache"]["crop_id"] == crop.crop_id


def test_a_chunk_is_a_range_of_the_file(opened):
    crop, expected = opened
    face, data = ZarrFace(crop), crop.path.read_bytes()
    span = face.get("0/1.0.0.0")
    assert isinstance(span, Span)
    assert face.get("0/1/0/0/0") == span
    shape = crop.channel(crop.channels[1]).chunks
    chunk = np.frombuffer(zlib.decompress(data[span.offset : span.offset + span.size]), np.uint8).reshape(shape)
    whole = expected.raw[1][tuple(slice(0, size) for size in shape)]
    places = np.frombuffer(face.get("0/.chunks"), "<u8").reshape(len(crop.channels), -1, 2)
    assert tuple(places[1, 0]) == (span.offset, span.size)
    assert np.array_equal(chunk[tuple(slice(0, size) for size in whole.shape)], whole)


def test_every_key_that_is_listed_is_there_and_no_other(opened):
    crop, _ = opened
    mapping = FaceMapping(crop)
    assert len(mapping) == len(set(mapping)) == 18
    assert all(key in mapping and mapping[key] for key in mapping)
    absent = ["", "0", "0/", "0/0.0.0", "0/0.0.0.9999", "0/9999.0.0.0", "0/-1.0.0.0", "0/0.0.0.0/..", "labels/0/0.0.0",
              f"labels/{crop.split.value}/0/0.0.0.0", "../crop_0.h5", "0/.zarray/", "labels_ids/1"]  # fmt: skip
    assert [key for key in absent if key in mapping] == []


def test_a_subset_of_channels_has_its_own_numbers(lab, tmp_path):
    with PrismClient(tmp_path, settings=lab.settings()) as client:
        (path,) = client.ensure("instance", 0, channels=[0, 2], progress=False)
    with Crop(path) as crop:
        image = zarr.open_group(crop.zarr_store(), mode="r")
        assert [channel["label"] for channel in image.attrs["omero"]["channels"]] == ["ch_00", "ch_02"]
        assert np.array_equal(image["0"][1], crop.raw[1])


def test_the_store_is_read_only_and_can_be_pickled(opened):
    crop, expected = opened
    store = pickle.loads(pickle.dumps(crop.zarr_store()))
    assert np.array_equal(zarr.open_group(store, mode="r")["0"][0], expected.raw[0])
    mapping = pickle.loads(pickle.dumps(FaceMapping(crop)))
    with pytest.raises(RequestError, match="read only"):
        mapping["0/0.0.0.0"] = b""
    with pytest.raises(RequestError, match="read only"):
        del mapping["0/0.0.0.0"]
