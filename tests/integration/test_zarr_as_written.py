"""Crops that are stored as other people's tools store them give the same file as the published layout."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from prismcache import Crop, PrismClient, SourceWarning
from prismcache.errors import InvalidSourceError
from prismcache.layout import manifest_path
from prismcache.schema import Split
from prismcache_service.pipeline.plan import plan_crop, read_crop
from tests.support.cache_root import tiny_spec
from tests.support.crops import CropSpec, write_crop
from tests.support.faults import FaultProxy, Rewrite
from tests.support.folder_source import FolderSource
from tests.support.s3 import S3Server

SPEC = tiny_spec(0)


def _edit(path: Path, change: Callable[[dict], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def _funlib(crop: Path) -> None:
    """`voxel_size` in place of `resolution`, in µm."""

    def change(attributes: dict) -> None:
        attributes["voxel_size"] = [n / 1000 for n in attributes.pop("resolution")]
        attributes["offset"] = [n / 1000 for n in attributes["offset"]]
        attributes["units"] = "um"

    _edit(crop / "raw/.zattrs", change)


def _multiscales(crop: Path) -> None:
    """Raw as the first scale of an OME-NGFF group, which alone says where it lies."""
    place = json.loads((crop / "raw/.zattrs").read_text())
    (crop / "raw").rename(crop / "s0")
    (crop / "raw").mkdir()
    (crop / "s0").rename(crop / "raw/s0")
    (crop / "raw/s0/.zattrs").unlink()
    (crop / "raw/.zgroup").write_text('{"zarr_format": 2}')
    transforms = [
        {"type": "scale", "scale": [1, *place["resolution"]]},
        {"type": "translation", "translation": [0, *place["offset"]]},
    ]
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space", "unit": "nanometer"} for n in "zyx")]
    datasets = [{"path": "s0", "coordinateTransformations": transforms}]
    (crop / "raw/.zattrs").write_text(json.dumps({"multiscales": [{"axes": axes, "datasets": datasets}]}))


def _one_channel_of_labels(crop: Path) -> None:
    """Labels with a leading axis of one."""

    def change(array: dict) -> None:
        array["shape"], array["chunks"] = [1, *array["shape"]], [1, *array["chunks"]]

    _edit(crop / "labels/.zarray", change)
    for chunk in (crop / "labels").glob("[0-9]*"):
        chunk.rename(chunk.with_name(f"0.{chunk.name}"))


def _fractional(crop: Path) -> None:
    """Voxels of 281.6 × 35.2 × 35.2 nm, and places that fit them."""
    size = (281.6, 35.2, 35.2)
    for array in ("raw", "labels"):

        def change(attributes: dict) -> None:
            whole = zip(attributes["offset"], SPEC.resolution, size, strict=True)
            attributes["offset"] = [round(n / r) * s for n, r, s in whole]
            if "resolution" in attributes:
                attributes["resolution"] = size

        _edit(crop / array / ".zattrs", change)


def _nowhere(crop: Path) -> None:
    """Neither voxel size nor offset, and raw of the labels' shape."""
    for array in ("raw", "labels"):
        _edit(crop / array / ".zattrs", dict.clear)


def _scales_by_number(crop: Path) -> None:
    """The same as ome-zarr-py names them, and a smaller scale that is listed first."""
    _multiscales(crop)
    (crop / "raw/s0").rename(crop / "raw/0")

    def change(attributes: dict) -> None:
        [image] = attributes["multiscales"]
        small = {"path": "1", "coordinateTransformations": [{"type": "scale", "scale": [1, 800, 336, 336]}]}
        image["datasets"] = [small, image["datasets"][0] | {"path": "0"}]

    _edit(crop / "raw/.zattrs", change)


WAYS = [_funlib, _multiscales, _scales_by_number, _one_channel_of_labels]


def _nested(crop: Path) -> None:
    for chunk in (crop / "raw").glob("[0-9]*"):
        nested = crop / "nested" / chunk.name.replace(".", "/")
        nested.parent.mkdir(parents=True, exist_ok=True)
        chunk.rename(nested)
    shutil.copytree(crop / "nested", crop / "raw", dirs_exist_ok=True)


@pytest.mark.parametrize(
    ("change", "found", "named"),
    [
        (_nested, "raw/0/0/0/0", "raw/0.0.0.0"),
        (
            lambda crop: _edit(crop / "raw/.zarray", lambda a: a.update(dimension_separator="/")),
            "raw/0.0.0.0",
            "raw/0/0",
        ),
    ],
    ids=["nested", "not-nested"],
)
def test_chunks_by_other_keys_than_the_metadata_names_are_not_absent(
    tmp_path: Path, change: Callable[[Path], None], found: str, named: str
) -> None:
    folder = write_crop(tmp_path, SPEC)
    change(folder)
    source = FolderSource(folder.parent)
    objects = asyncio.run(source.list_objects(folder.name))
    crop = asyncio.run(read_crop(source, folder.name, objects))
    with pytest.raises(InvalidSourceError, match=f"raw has chunks such as {found}, and .* names them as in {named}"):
        plan_crop(crop, None, strict=False)


def test_the_same_voxels_in_the_same_place(tmp_path: Path) -> None:
    published = write_crop(tmp_path / "bucket", SPEC)
    for crop, change in enumerate(WAYS, start=1):
        change(shutil.copytree(published, published.with_name(f"crop_{crop}.zarr")))
    with (
        S3Server(tmp_path / "bucket") as server,
        PrismClient(root=tmp_path / "root", s3_endpoint_url=server.endpoint) as client,
    ):
        first, *others = client.ensure("instance", range(len(WAYS) + 1), strict=True, progress=False)
    with h5py.File(first, "r") as expected:
        names: list[str] = []
        expected.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        assert len(names) > 2
        for path in others:
            with h5py.File(path, "r") as found:
                for name in names:
                    np.testing.assert_array_equal(found[name], expected[name], err_msg=f"{path}: {name}")
                    for key in ("offset", "resolution", "voxel_size") if "offset" in expected[name].attrs else ():
                        np.testing.assert_array_equal(found[name].attrs[key], expected[name].attrs[key])


def _ensured(folder: Path, spec: CropSpec, change: Callable[[Path], None], warning: str) -> Crop:
    change(write_crop(folder / "bucket", spec))
    with (
        S3Server(folder / "bucket") as server,
        PrismClient(root=folder / "root", s3_endpoint_url=server.endpoint) as client,
    ):
        for _ in range(2):  # every call warns, not only the one that fetched
            with pytest.warns(SourceWarning, match=warning):
                [file] = client.ensure_files("instance", 0, progress=False)
    return Crop(file.path)


def test_fractional_nm_are_rounded_with_the_exact_values_beside(tmp_path: Path) -> None:
    with _ensured(tmp_path, SPEC, _fractional, r"voxel size \(281.6, 35.2, 35.2\) .* rounded") as crop:
        assert (crop.voxel_size, crop.voxel_size_nm) == ((282, 35, 35), (281.6, 35.2, 35.2))
        assert "281.6" in crop._repr_html_()
        for name in ("labels", "raw/ch_00"):
            exact = crop.file[name].attrs["offset_nm"]
            np.testing.assert_array_equal(np.round(exact), crop.file[name].attrs["offset"])


def test_an_unknown_voxel_size_is_said_and_not_made_up(tmp_path: Path) -> None:
    size = SPEC.labels_shape
    spec = dataclasses.replace(SPEC, raw_shape=size, labels_offset=None)
    with _ensured(tmp_path, spec, _nowhere, "the source gives no voxel size") as crop:
        assert crop.voxel_size_nm is None
        assert "size unknown" in crop._repr_html_()
        assert list(crop.file["labels"].attrs["units"]) == ["voxel"] * 3
    assert "no voxel size" in (tmp_path / "root" / manifest_path(Split.INSTANCE, 0)).read_text()


def test_a_listing_without_etags_is_unverified_in_the_manifest(tmp_path: Path) -> None:
    write_crop(tmp_path / "bucket", SPEC)
    with S3Server(tmp_path / "bucket") as server, FaultProxy(server.endpoint) as proxy:
        gone = Rewrite(lambda r: dataclasses.replace(r, body=re.sub(rb"<ETag>[^<]*</ETag>", b"", r.body)))
        proxy.add(gone, listing=True)
        with (
            PrismClient(root=tmp_path / "root", s3_endpoint_url=proxy.endpoint) as client,
            pytest.warns(SourceWarning, match="unverified: .* objects have no ETag"),
        ):
            client.ensure("instance", 0, progress=False)
