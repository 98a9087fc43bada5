"""Cached crops equal the reference's, voxel for voxel, however they are made."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from prismcache import AsyncPrismClient, PrismClient
from prismcache.layout import FORMAT_VERSION, Manifest, SourceList, manifest_path, sources_path
from prismcache.schema import Split
from tests.support.bucket import standard_specs
from tests.support.cache_root import Lab, published, tiny_spec, unfinished
from tests.support.crops import CropSpec, small_spec, write_crop
from tests.support.labs import running_lab
from tests.support.oracle import assert_crop_file_equals_oracle, reference_crop
from tests.support.s3 import S3Server

SPECS = standard_specs()


def _name(spec: CropSpec) -> str:
    return f"{spec.split}-{spec.crop}-{spec.channels}ch"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab with the standard crops, all of them cached."""
    with running_lab(tmp_path_factory.mktemp("parity"), SPECS) as lab:
        with PrismClient(settings=lab.settings()) as client:
            for split in (Split.INSTANCE, Split.SEMANTIC):
                client.ensure(split, [spec.crop for spec in SPECS if spec.split == split], progress=False)
        yield lab


@pytest.mark.parametrize("spec", SPECS, ids=_name)
def test_a_cached_crop_equals_the_oracle(lab: Lab, spec: CropSpec) -> None:
    assert_crop_file_equals_oracle(lab.cached(spec), lab.source(spec))


def test_all_published_channel_counts_and_both_splits_are_among_them() -> None:
    assert {spec.channels for spec in SPECS if spec.split == "instance"} == {18, 12, 10, 11}
    assert {spec.split for spec in SPECS} == {"instance", "semantic"}


def test_the_source_ids_include_those_that_break_the_reference(lab: Lab) -> None:
    ids = np.concatenate(
        [h5py.File(lab.cached(spec), "r")["labels_ids"][()] for spec in SPECS if spec.split == "instance"]
    )
    assert ids.max() > np.uint64(2**64 - 200)
    assert ((ids > 2**40) & (ids < 2**42)).any()


def test_every_needed_object_is_fetched_once_and_no_other(lab: Lab) -> None:
    spec = SPECS[0]
    fetched = lab.fetched(spec)
    raw = {key for key in fetched if key.startswith("raw/") and not key.startswith("raw/.")}
    shift, shape, chunks = spec.shift, spec.labels_shape, spec.raw.chunk_shape(spec.raw_array_shape)[1:]
    spans = [range(s // c, -(-(s + n) // c)) for s, n, c in zip(shift, shape, chunks, strict=True)]
    assert raw == {f"raw/{c}.{z}.{y}.{x}" for c in range(6) for z in spans[0] for y in spans[1] for x in spans[2]}
    assert set(fetched) - raw == {key for key in spec.keys if key.startswith("labels/")} | {
        f"{array}/{name}" for array in ("raw", "labels") for name in (".zarray", ".zattrs")
    }
    assert set(fetched.values()) == {1}


def test_manifest_and_list_of_sources(lab: Lab) -> None:
    spec = SPECS[0]
    path = lab.cached(spec)
    manifest = Manifest.model_validate_json((lab.root / manifest_path(Split.INSTANCE, 0)).read_bytes())
    assert manifest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (manifest.size, manifest.stamp.mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)
    assert (manifest.channels, manifest.complete, manifest.missing_chunks) == (tuple(range(18)), True, 0)
    assert manifest.format_version == FORMAT_VERSION
    assert manifest.endpoint == lab.proxy.endpoint
    sources = SourceList.model_validate_json((lab.root / sources_path(Split.INSTANCE, 0)).read_bytes())
    assert sources.source_fingerprint == manifest.source_fingerprint
    files = [file for file in lab.source(spec).rglob("*") if file.is_file()]
    assert {(o.key, o.size, o.etag) for o in sources.objects} == {
        (str(f.relative_to(lab.source(spec))), f.stat().st_size, hashlib.md5(f.read_bytes()).hexdigest()) for f in files
    }
    with h5py.File(path, "r") as file:
        assert file.attrs["source_fingerprint"] == manifest.source_fingerprint
        assert file.attrs["source"] == manifest.source


def test_files_and_folders_are_for_the_group(lab: Lab) -> None:
    umask = 0o022  # as the tests are run; a lab sets 002
    for path in (lab.cached(SPECS[0]), lab.cached(SPECS[0]).parent):
        assert path.stat().st_mode & 0o060 & ~umask == 0o060 & ~umask


@pytest.fixture(scope="module")
def subsets(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lab, PrismClient]]:
    """The lab with another cache folder, and a client for it."""
    own = dataclasses.replace(lab, root=tmp_path_factory.mktemp("subsets") / "root")
    with PrismClient(settings=own.settings()) as client:
        yield own, client


@pytest.mark.parametrize(
    ("channels", "name"), [([0], "00"), ([3, 4], "03-04"), ([17, 0, 9, 17], "00_09_17"), (np.arange(1, 8), "01-07")]
)
def test_subsets_of_channels(subsets: tuple[Lab, PrismClient], channels: list[int], name: str) -> None:
    spec = SPECS[0]
    lab, client = subsets
    client.remove("instance", 0)
    [file] = client.ensure_files("instance", 0, channels=channels, progress=False)
    assert Path(file.path) == lab.cached(spec, name)
    assert file.channels == tuple(sorted(set(map(int, channels))))
    assert_crop_file_equals_oracle(lab.cached(spec, name), lab.source(spec), list(file.channels))


def test_largest_ids_take_no_more_memory(tmp_path: Path) -> None:
    """A table up to the largest id would take 2**66 bytes; the limit is the least there can be."""
    spec = tiny_spec(seed=4)
    with running_lab(tmp_path, [spec]) as lab:
        labels = reference_crop(lab.source(spec)).source_labels
        assert labels.max() > np.uint64(2**64 - 200)
        with PrismClient(settings=lab.settings(memory_limit=200_000_000)) as client:
            client.ensure("instance", 0, progress=False)
        assert_crop_file_equals_oracle(lab.cached(spec), lab.source(spec))


def test_the_asynchronous_client_gives_the_same_file(lab: Lab, tmp_path: Path) -> None:
    async def get() -> list[str]:
        async with AsyncPrismClient(settings=lab.settings(root=tmp_path / "async")) as client:
            return await client.ensure("semantic", [1, 0, 1], progress=False)

    paths = asyncio.run(get())
    assert paths == [str(tmp_path / "async" / "semantic" / f"crop_{crop}.h5") for crop in (1, 0, 1)]
    assert Path(paths[0]).read_bytes() == (lab.root / "semantic" / "crop_1.h5").read_bytes()
    assert unfinished(tmp_path / "async") == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"memory_limit": 200_000_000, "decode_threads": 1, "s3_concurrency": 1},
        {"memory_limit": 2_000_000_000, "decode_threads": 7, "s3_concurrency": 64, "workers": 1},
    ],
    ids=["again", "lean", "lavish"],
)
def test_two_runs_give_the_same_bytes(lab: Lab, tmp_path: Path, changes: dict[str, int]) -> None:
    root = tmp_path / "again"
    with PrismClient(settings=lab.settings(root=root, **changes)) as client:
        client.ensure("instance", 12, progress=False)
        client.ensure("instance", 12, channels=[2, 5], progress=False)  # satisfied by the fuller file
        client.ensure("semantic", 0, progress=False)
    assert published(root) == ["instance/crop_12.h5", "semantic/crop_0.h5"]
    for name in published(root):
        assert (root / name).read_bytes() == (lab.root / name).read_bytes(), name


def test_the_same_tissue_gives_the_same_raw_in_both_splits(lab: Lab) -> None:
    instance, semantic = reference_crop(lab.source(SPECS[1])), reference_crop(lab.source(small_spec("semantic", 0)))
    assert SPECS[1].crop == 2
    assert instance.raw.shape[0] == semantic.raw.shape[0]


def test_a_prefix_and_bucket_of_ones_own(tmp_path: Path) -> None:
    spec = tiny_spec(7)
    write_crop(tmp_path / "made", spec)
    place = tmp_path / "s3" / "private" / "instance"
    place.mkdir(parents=True)
    (tmp_path / "made" / "e11bio-prism" / spec.prefix).rename(place / "crop_7.zarr")
    with (
        S3Server(tmp_path / "s3") as server,
        PrismClient(tmp_path / "root", s3_endpoint_url=server.endpoint, s3_bucket="private", s3_prefix="") as client,
    ):
        [path] = client.ensure("instance", None, progress=False)
        assert [info.crop for info in client.catalog()] == [7]
    assert_crop_file_equals_oracle(Path(path), place / "crop_7.zarr")
    manifest = json.loads((tmp_path / "root" / manifest_path(Split.INSTANCE, 7)).read_text())
    assert manifest["source"] == "s3://private/instance/crop_7.zarr"
