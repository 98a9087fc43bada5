"""Crops for other stacks, as far as that needs none of them: OME-Zarr and the command for it, napari's layer data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

from prismcache import CropNotCachedError, NoSpaceError, PrismClient, RequestError, UnknownChannelError
from prismcache.adapters import napari
from prismcache.adapters.zarr import to_zarr
from prismcache.cli import app as cli
from tests.support import products_oracle
from tests.support.cache_root import Lab, files_below, tiny_spec
from tests.support.labs import running_lab
from tests.support.mounts import small_disk
from tests.support.oracle import ReferenceCrop, reference_crop

SPECS = {"instance": tiny_spec(0), "semantic": tiny_spec(1, "semantic")}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("lab"), SPECS.values()) as lab:
        with PrismClient(settings=lab.settings()) as client:
            client.ensure("instance", 0, progress=False)
            client.ensure("semantic", 1, progress=False)
        yield lab


def cached(lab: Lab, split: str) -> tuple[Path, ReferenceCrop]:
    return lab.cached(SPECS[split]), reference_crop(lab.source(SPECS[split]))


def test_the_command_writes_a_cached_crop_as_ome_zarr(lab, tmp_path, monkeypatch):
    monkeypatch.setenv("PRISMCACHE_ROOT", str(lab.root))
    _, expected = cached(lab, "instance")
    words = ["export", "instance", "0", str(tmp_path / "new" / "crop_0.zarr"), "--channels", "0,2"]
    done = CliRunner().invoke(cli.app, words)
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path}/new/crop_0.zarr\n")
    image = zarr.open_group(done.stdout.strip(), mode="r", zarr_format=2)
    assert np.array_equal(image["0"], expected.raw[[0, 2]])
    labels = image["labels/instance/0"]
    assert labels.dtype == np.uint32
    assert np.array_equal(labels, expected.labels)
    assert np.array_equal(image["labels_ids"][:][labels[:]], expected.source_labels)
    for array in (image["0"], labels):
        assert tuple(array.attrs["offset"]) == expected.offset
        assert tuple(array.attrs["resolution"]) == tuple(array.attrs["voxel_size"]) == expected.resolution
    assert [channel["label"] for channel in image.attrs["omero"]["channels"]] == ["ch_00", "ch_02"]
    scale, translation = image.attrs["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert scale == {"type": "scale", "scale": [1, *expected.resolution]}
    assert translation == {"type": "translation", "translation": [0, *expected.offset]}
    stored = json.loads((tmp_path / "new/crop_0.zarr/0/.zarray").read_text())
    assert (stored["zarr_format"], stored["dimension_separator"]) == (2, "/")
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "crop_0.zarr"]


def test_the_command_writes_e11s_layout(lab, tmp_path, monkeypatch):
    monkeypatch.setenv("PRISMCACHE_ROOT", str(lab.root))
    _, expected = cached(lab, "semantic")
    words = ["export", "semantic", "1", str(tmp_path / "crop_1.zarr"), "--layout", "e11"]
    done = CliRunner().invoke(cli.app, words)
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path}/crop_1.zarr\n")
    group = zarr.open_group(tmp_path / "crop_1.zarr", mode="r", zarr_format=2)
    assert np.array_equal(group["raw"], expected.raw)
    assert np.array_equal(group["labels"], expected.source_labels)
    assert np.array_equal(group["unlabelled"], expected.source_labels > 0)
    assert json.loads((tmp_path / "crop_1.zarr/raw/.zarray").read_text())["dimension_separator"] == "."


@pytest.mark.parametrize(("layout", "raw"), [("e11", "raw"), ("ngff", "0")])
def test_the_command_adds_products_and_context(lab, tmp_path, monkeypatch, layout, raw):
    monkeypatch.setenv("PRISMCACHE_ROOT", str(lab.root))
    monkeypatch.setenv("PRISMCACHE_S3_ENDPOINT_URL", lab.proxy.endpoint)
    _, expected = cached(lab, "semantic")
    words = ["export", "semantic", "1", str(tmp_path / "a.zarr"), "--layout", layout, "--context", "all"]
    words += ["--channels", "0,2", "--arrays", "raw,avg_barcodes,border_mask,unlabelled"]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.stderr
    group = zarr.open_group(tmp_path / "a.zarr", mode="r", zarr_format=2)
    assert sorted(group) == sorted([raw, "avg_barcodes", "border_mask", "unlabelled"])
    assert np.array_equal(group[raw], zarr.open_array(lab.source(SPECS["semantic"]) / "raw", mode="r")[...][[0, 2]])
    assert np.array_equal(group["avg_barcodes"], products_oracle.avg_barcodes(expected.raw, expected.labels)[[0, 2]])
    border = products_oracle.border_mask(expected.source_labels, expected.resolution)
    assert np.array_equal(group["border_mask"], border)
    assert np.array_equal(group["unlabelled"], expected.source_labels > 0)
    assert group["avg_barcodes"].attrs["offset"] == group["border_mask"].attrs["offset"] == list(expected.offset)


def test_semantic_crops_are_written_with_their_classes_in_any_type_that_holds_them(lab, tmp_path):
    path, expected = cached(lab, "semantic")
    to_zarr(path, tmp_path / "a.zarr", channels=1, label_dtype="uint8", chunks=(5, 16, 1000))
    image = zarr.open_group(tmp_path / "a.zarr", mode="r")
    labels = image["labels/semantic/0"]
    assert (labels.dtype, labels.chunks) == (np.uint8, (5, 16, expected.labels.shape[2]))
    assert np.array_equal(labels, expected.source_labels)
    assert np.array_equal(image["0"], expected.raw[[1]])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"channels": [0, 7]}, UnknownChannelError, "has no channel 7"),
        ({"label_values": "original", "label_dtype": "uint8"}, RequestError, "which uint8 does not hold"),
        ({"label_dtype": "float32"}, RequestError, "integer type, not 'float32'"),
        ({"label_values": "old"}, RequestError, "label_values"),
        ({"chunks": (64, 64)}, RequestError, "chunks"),
        ({"layout": "flat"}, RequestError, "layout must be one of"),
        ({"arrays": ["raw", "lunch"]}, RequestError, "no array lunch to export; there are raw, labels, unl"),
        ({"arrays": ["labels"]}, RequestError, "layout 'ngff' needs raw"),
        ({"arrays": ["raw", "fgbg"]}, RequestError, "'fgbg' exists for semantic crops only"),
        ({"arrays": ["raw", "avg_barcodes"]}, CropNotCachedError, "has no file .*crop_0.avg_barcodes.h5"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(lab, tmp_path, arguments, error, words):
    with pytest.raises(error, match=words):
        to_zarr(cached(lab, "instance")[0], tmp_path / "a.zarr", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_an_export_replaces_nothing(lab, tmp_path):
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(RequestError, match=r"a\.zarr exists already"):
        to_zarr(cached(lab, "instance")[0], tmp_path / "a.zarr")
    assert files_below(tmp_path) == []


def test_a_full_disk_leaves_nothing(lab, tmp_path):
    with small_disk(tmp_path / "disk", 64 << 10) as disk:
        with pytest.raises(NoSpaceError) as caught:
            to_zarr(cached(lab, "instance")[0], disk / "a.zarr")
        assert "the export" in caught.value.remedy
        assert list(disk.iterdir()) == []


def test_napari_is_given_channels_and_labels_in_their_place(lab):
    path, expected = cached(lab, "instance")
    *images, labels = napari.layers(path, channels=[2, 0])
    assert [(layer[1]["name"], layer[2]) for layer in [*images, labels]] == [
        ("instance/0 ch 0", "image"),
        ("instance/0 ch 2", "image"),
        ("instance/0 labels", "labels"),
    ]
    for voxels, wanted in zip([*images, labels], [expected.raw[0], expected.raw[2], expected.labels], strict=True):
        assert np.array_equal(voxels[0], wanted)
        assert (voxels[1]["scale"], voxels[1]["translate"]) == (expected.resolution, expected.offset)
        assert voxels[1]["units"] == ("nm", "nm", "nm")
    assert np.array_equal(napari.layers(cached(lab, "semantic")[0])[-1][0], cached(lab, "semantic")[1].source_labels)


def test_napari_opens_crops_and_nothing_else_through_us(lab):
    path = str(cached(lab, "instance")[0])
    read = napari.reader([path])
    assert read is not None
    assert len(read([path, path])) == 2 * len(read(path)) == 2 * (SPECS["instance"].channels + 1)
    assert napari.reader([path, "notes.h5"]) is None
