"""The cache folder in use: hits, subsets, verify, rm, catalog, and what survives the loss of its own records."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import pytest

from prismcache import (
    AsyncPrismClient,
    EnsureTimeoutError,
    PrismClient,
    SourceDeniedError,
    UnknownCropError,
    Verdict,
)
from prismcache.layout import STATE_FOLDER, Manifest
from tests.support.cache_root import Lab, files_below, published, quarantined, tiny_spec, traces_of, unfinished
from tests.support.crops import CropSpec
from tests.support.fault_actions import Stall
from tests.support.faults import Status
from tests.support.labs import running_lab
from tests.support.oracle import assert_crop_file_equals_oracle
from tests.support.processes import run

SPECS = [tiny_spec(0), tiny_spec(3, channels=5), tiny_spec(1, "semantic")]


@pytest.fixture(scope="module")
def module_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("cache"), SPECS) as lab:
        with PrismClient(settings=lab.settings()) as client:
            client.ensure("instance", [0, 3], progress=False)
            client.ensure("instance", 0, channels=[0], progress=False)
            client.ensure("semantic", 1, channels=[0, 1], progress=False)
        yield lab


@pytest.fixture
def warm(module_lab: Lab, tmp_path: Path) -> Iterator[Lab]:
    """The lab with a copy of its cache: instance/0, instance/3 and channels 0 and 1 of semantic/1."""
    shutil.copytree(module_lab.root, tmp_path / "root")
    module_lab.proxy.clear()
    yield dataclasses.replace(module_lab, root=tmp_path / "root")
    module_lab.proxy.clear()


@pytest.fixture
def cold(module_lab: Lab, tmp_path: Path) -> Lab:
    """The lab with nothing cached."""
    module_lab.proxy.clear()
    return dataclasses.replace(module_lab, root=tmp_path / "cold")


@pytest.fixture
def client(warm: Lab) -> Iterator[PrismClient]:
    with PrismClient(settings=warm.settings()) as client:
        yield client


def test_a_second_call_fetches_nothing(warm: Lab, client: PrismClient) -> None:
    paths = client.ensure("instance", [3, 0, 3], progress=False)
    assert paths == [str(warm.cached(SPECS[1])), str(warm.cached(SPECS[0])), str(warm.cached(SPECS[1]))]
    assert list(client.iter_ensure("instance", 0, progress=False)) == paths[1:2]
    assert client.ensure("instance", 0, timeout=0, progress=False) == paths[1:2]
    assert warm.proxy.requests == []
    assert unfinished(warm.root) == []


def test_a_hit_needs_no_source_no_worker_and_no_permission_to_write(warm: Lab) -> None:
    settings = warm.settings(s3_endpoint_url="http://127.0.0.1:1")
    before = {name: (warm.root / name).stat().st_mtime_ns for name in files_below(warm.root)}
    with PrismClient(settings=settings) as client:
        [path] = client.ensure("instance", 0, progress=False)  # a copy: its time stamps differ, so that it is re-read
    after = {name: (warm.root / name).stat().st_mtime_ns for name in files_below(warm.root)}
    assert path == str(warm.cached(SPECS[0]))
    assert {name for name in after if after[name] != before.get(name)} == {
        f"{STATE_FOLDER}/manifests/instance/crop_0.json"
    }


def test_a_subset_is_satisfied_by_the_fuller_file(warm: Lab, client: PrismClient) -> None:
    assert client.ensure("instance", 3, channels=[4, 1], progress=False) == [str(warm.cached(SPECS[1]))]
    assert client.ensure("semantic", 1, channels=1, progress=False) == [str(warm.cached(SPECS[2], "00-01"))]
    assert warm.proxy.requests == []


def test_a_subset_that_names_every_channel_is_the_full_file(cold: Lab) -> None:
    with PrismClient(settings=cold.settings()) as client:
        [path] = client.ensure("instance", 0, channels=[2, 1, 0], progress=False)
    assert path == str(cold.cached(SPECS[0]))
    assert_crop_file_equals_oracle(cold.cached(SPECS[0]), cold.source(SPECS[0]))


def test_the_full_file_is_made_beside_a_subset(warm: Lab, client: PrismClient) -> None:
    subset = warm.cached(SPECS[2], "00-01")
    content = subset.read_bytes()
    assert client.ensure("semantic", 1, channels=[1, 2], progress=False) == [str(warm.cached(SPECS[2], "01-02"))]
    assert client.ensure("semantic", 1, progress=False) == [str(warm.cached(SPECS[2]))]
    assert subset.read_bytes() == content
    assert_crop_file_equals_oracle(warm.cached(SPECS[2]), warm.source(SPECS[2]))
    warm.proxy.clear()
    assert client.ensure("semantic", 1, channels=[0, 1], progress=False) == [str(warm.cached(SPECS[2]))]
    assert warm.proxy.requests == []


def test_files_open_while_they_are_made_again(warm: Lab, client: PrismClient) -> None:
    """A reader keeps the file that it opened."""
    path = warm.cached(SPECS[0])
    with h5py.File(path, "r", locking=False) as file:
        client.remove("instance", 0)
        client.ensure("instance", 0, progress=False)
        assert file["labels"][()].any()


# --- verify


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_verify_reads_every_byte(warm: Lab, client: PrismClient) -> None:
    assert [(r.split, r.crop, r.verdict) for r in client.verify()] == [
        ("instance", 0, Verdict.OK), ("instance", 3, Verdict.OK), ("semantic", 1, Verdict.OK),
    ]  # fmt: skip
    path = warm.cached(SPECS[1])
    stat = path.stat()
    _flip(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    [result] = client.verify("instance", 3)
    assert (result.verdict, result.path) == (Verdict.CORRUPT, str(path))
    assert "SHA-256" in result.reason
    assert path.exists()
    assert warm.proxy.requests == []


def test_verify_at_the_command_line(warm: Lab) -> None:
    _flip(warm.cached(SPECS[0]))
    done = run(warm.settings(), "verify", "--json")
    verdicts = [result["verdict"] for result in json.loads(done.stdout)["results"]]
    assert (done.code, verdicts) == (1, ["corrupt", "ok", "ok"])
    repaired = run(warm.settings(), "verify", "instance", "0", "--repair")
    assert (repaired.code, repaired.stdout.split()[0]) == (0, "repaired")
    assert run(warm.settings(), "verify").code == 0


# --- rm


def test_rm_leaves_nothing_of_a_crop(warm: Lab, client: PrismClient) -> None:
    client.ensure("semantic", 1, progress=False)
    removed = client.remove("semantic", 1)
    assert [file.path for file in removed] == [str(warm.cached(SPECS[2])), str(warm.cached(SPECS[2], "00-01"))]
    assert traces_of(warm.root, SPECS[2]) == []
    assert client.remove("semantic", 1) == []
    assert len(client.remove("instance", None)) == 2
    assert published(warm.root) == []
    [path] = client.ensure("instance", 0, progress=False)
    assert_crop_file_equals_oracle(Path(path), warm.source(SPECS[0]))


def test_rm_at_the_command_line(warm: Lab) -> None:
    done = run(warm.settings(), "rm", "instance", "0")
    assert (done.code, done.paths) == (0, [str(warm.cached(SPECS[0]))])
    assert run(warm.settings(), "rm", "instance", "all").code == 2
    assert run(warm.settings(), "rm", "instance", "all", "--yes").paths == [str(warm.cached(SPECS[1]))]
    assert published(warm.root) == ["semantic/crop_1.ch00-01.h5"]


# --- catalog


def _facts(spec: CropSpec, lab: Lab) -> tuple[Any, ...]:
    files = [path for path in lab.source(spec).rglob("*") if path.is_file()]
    return spec.raw_array_shape, spec.labels_shape, spec.resolution, sum(p.stat().st_size for p in files), len(files)


def test_catalog_of_what_is_published_and_cached(warm: Lab, client: PrismClient) -> None:
    infos = client.catalog()
    assert [(info.split, info.crop) for info in infos] == [("instance", 0), ("instance", 3), ("semantic", 1)]
    for info, spec in zip(infos, SPECS, strict=True):
        found = info.raw_shape, info.labels_shape, info.voxel_size, info.source_bytes, info.source_objects
        assert found == _facts(spec, warm)
        assert info.offset == spec.labels_world_offset
        assert info.problem is None
    assert [[file.path for file in info.files] for info in infos] == [
        [str(warm.cached(SPECS[0]))], [str(warm.cached(SPECS[1]))], [str(warm.cached(SPECS[2], "00-01"))],
    ]  # fmt: skip
    warm.proxy.clear()
    assert client.catalog("semantic") == infos[2:]
    assert client.describe("instance", 3) == infos[1]
    assert warm.proxy.requests == []
    assert client.catalog("semantic", refresh=True) == infos[2:]
    assert warm.proxy.requests


def test_catalog_with_an_unreachable_source(warm: Lab, client: PrismClient) -> None:
    warm.proxy.add(Status(503), listing=True)
    infos = client.catalog()  # never read: cached crops are described by their files
    assert [(info.split, info.crop) for info in infos] == [("instance", 0), ("instance", 3), ("semantic", 1)]
    assert all(info.raw_shape and info.labels_shape and info.voxel_size for info in infos)
    assert all(len(info.files) == 1 for info in infos)
    warm.proxy.clear()
    known = client.catalog()
    warm.proxy.add(Status(403), listing=True)
    assert client.catalog(refresh=True) == known
    done = run(warm.settings(), "ls", "--json", "--refresh")
    assert done.code == 0
    assert (
        "the bucket cannot be read, so the list is the one that was read last: listing of s3://e11bio-" in done.stderr
    )
    assert [info["crop"] for info in json.loads(done.stdout)["crops"]] == [0, 3, 1]
    assert client.ensure("instance", None, progress=False) == [str(warm.cached(spec)) for spec in SPECS[:2]]


def test_an_unreachable_source_and_nothing_known_is_an_error(cold: Lab) -> None:
    cold.proxy.add(Status(403), listing=True)
    with PrismClient(settings=cold.settings()) as client:
        with pytest.raises(SourceDeniedError, match="403"):
            client.catalog()
        with pytest.raises(SourceDeniedError, match="403"):
            client.describe("instance", 0)
        cold.proxy.clear()
        assert len(client.catalog()) == len(SPECS)
        with pytest.raises(UnknownCropError):
            client.describe("instance", 7)


def test_a_bucket_that_stalls_holds_up_neither_deadline_nor_cancellation(cold: Lab) -> None:
    stall = Stall()
    cold.proxy.add(stall, listing=True)

    async def story() -> None:
        async with AsyncPrismClient(settings=cold.settings()) as client:
            asking = asyncio.create_task(client.ensure("instance", None, progress=False))
            while not cold.proxy.requests:  # noqa: ASYNC110 - the proxy runs in threads
                await asyncio.sleep(0.01)
            asking.cancel()
            async with asyncio.timeout(10):
                with pytest.raises(asyncio.CancelledError):
                    await asking
                with pytest.raises(EnsureTimeoutError, match="were not known within 0 s"):
                    await client.ensure("instance", None, timeout=0, progress=False)

    try:
        asyncio.run(story())
    finally:
        stall.release()
    assert files_below(cold.root) == []


def test_a_crop_that_cannot_be_read_is_listed_with_its_problem(warm: Lab, client: PrismClient) -> None:
    warm.proxy.add(Status(404), key="instance/crop_3.zarr/raw/.zarray")
    infos = client.catalog(refresh=True)
    assert [info.problem.code if info.problem else None for info in infos] == [None, "source_corrupt", None]
    assert infos[1].source_objects == _facts(SPECS[1], warm)[-1]
    assert "error[source_corrupt]" in run(warm.settings(), "ls").stdout


def test_catalog_is_read_anew_when_its_record_is_lost(warm: Lab, client: PrismClient) -> None:
    known = client.catalog()
    record = warm.root / STATE_FOLDER / "catalog.json"
    for lost in (record.unlink, *(partial(record.write_text, odd) for odd in ("", "{", '{"read_at": 3}', "[]"))):
        lost()
        assert client.catalog() == known
        assert json.loads(record.read_text())["crops"]


def test_another_bucket_has_another_catalog(warm: Lab, client: PrismClient) -> None:
    client.catalog()
    with PrismClient(settings=warm.settings(s3_prefix="nothing/here")) as other:
        assert [info.raw_shape for info in other.catalog()] == [None] * 3


# --- records lost


def test_a_lost_manifest_means_made_again(warm: Lab, client: PrismClient) -> None:
    before = warm.cached(SPECS[0]).read_bytes()
    record = warm.root / STATE_FOLDER / "manifests/instance/crop_0.json"
    for lost in (record.unlink, *(partial(record.write_text, odd) for odd in ("{", '{"format_version": 1}'))):
        lost()
        assert [file.path for info in client.catalog("instance") for file in info.files] == [str(warm.cached(SPECS[1]))]
        [path] = client.ensure("instance", 0, progress=False)
        assert Path(path).read_bytes() == before
        assert Manifest.model_validate_json(record.read_bytes()).complete
        assert unfinished(warm.root) == []


def test_the_whole_state_folder_lost(warm: Lab, client: PrismClient) -> None:
    shutil.rmtree(warm.root / STATE_FOLDER)
    assert all(info.files == () for info in client.catalog())
    paths = client.ensure("instance", [0, 3], progress=False)
    assert paths == [str(warm.cached(SPECS[0])), str(warm.cached(SPECS[1]))]
    assert [info.crop for info in client.catalog() if info.files] == [0, 3]
    for spec in SPECS[:2]:
        assert_crop_file_equals_oracle(warm.cached(spec), warm.source(spec))
    assert len(quarantined(warm.root)) == 2


def test_sources_lost_do_no_harm(warm: Lab, client: PrismClient) -> None:
    for record in warm.root.rglob("*.sources.json"):
        record.unlink()
    client.ensure("instance", [0, 3], progress=False)
    assert {result.verdict for result in client.verify()} == {Verdict.OK}
    assert warm.proxy.requests == []


def test_foreign_files_are_left_alone(warm: Lab, client: PrismClient) -> None:
    foreign = [warm.root / "instance" / name for name in ("notes.txt", "crop_x.h5", "crop_00.h5", "crop_0.ch2-1.h5")]
    for path in foreign:
        path.write_text("mine")
    client.verify(repair=True)
    client.ensure("semantic", 1, progress=False)
    client.remove("instance", None)
    assert [path.read_text() for path in foreign] == ["mine"] * 4
