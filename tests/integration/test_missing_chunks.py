"""Chunks that the bucket lacks: zarr's fill value, counted and warned of, or refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import h5py
import numpy as np
import pytest

from prismcache import MissingChunksError, MissingChunksWarning, PrismClient
from tests.support.cache_root import Lab, tiny_spec, traces_of, unfinished
from tests.support.codecs import ArrayLayout, Compressor
from tests.support.crops import CropSpec
from tests.support.labs import running_lab
from tests.support.oracle import absent_objects, assert_crop_file_equals_oracle
from tests.support.processes import run

SPEC = tiny_spec()


def _absent(
    crop: int, raw: tuple[tuple[int, ...], ...], labels: tuple[tuple[int, ...], ...], fill: int | None
) -> CropSpec:
    return dataclasses.replace(
        SPEC,
        crop=crop,
        raw=dataclasses.replace(SPEC.raw, absent=raw, fill_value=fill),
        labels=dataclasses.replace(SPEC.labels, absent=labels, fill_value=fill),
    )


def _sharded(crop: int) -> CropSpec:
    spec = SPEC.with_layout(zarr_format=3, separator="/", compressor=Compressor("zstd", 1))
    raw = ArrayLayout("|u1", (1, 8, 16, 16), (1, 16, 32, 32), 3, "/", fill_value=9, attributes=("offset", "resolution"))
    return dataclasses.replace(
        spec, crop=crop, raw=dataclasses.replace(raw, compressor=Compressor("zstd", 1), absent=((1, 0, 0, 0),))
    )


CASES = {
    "raw": (_absent(1, ((0, 0, 1, 0), (0, 1, 0, 0)), (), 0), 2),
    "background": (_absent(2, (), ((0, 0, 0), (1, 1, 1)), 0), 0),
    "no-labels-at-all": (_absent(10, (), tuple(np.ndindex(2, 2, 2)), 0), 8),
    "undefined-labels": (_absent(8, (), ((0, 0, 0),), None), 1),
    "fill-value": (_absent(3, ((0, 1, 1, 1),), ((1, 0, 1),), 77), 2),
    "all-labels": (_absent(4, (), tuple(np.ndindex(2, 2, 2)), 5), 8),
    "all-raw": (_absent(5, tuple(np.ndindex(1, 3, 2, 2)), (), 3), 8),  # 4 of 12 lie outside of the labels' box
    "outside-the-box": (_absent(6, ((0, 2, 0, 0), (0, 2, 1, 1)), (), 0), 0),
    "shard": (_sharded(7), 1),
}


UNDEFINED = _absent(9, ((0, 0, 1, 0),), (), None)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("missing"), [SPEC, UNDEFINED, *(s for s, _ in CASES.values())]) as lab:
        yield lab


@pytest.fixture(scope="module")
def client(lab: Lab) -> Iterator[PrismClient]:
    with PrismClient(settings=lab.settings()) as client:
        yield client


@pytest.mark.parametrize("name", CASES)
def test_absent_chunks_hold_the_fill_value_and_are_counted(lab: Lab, client: PrismClient, name: str) -> None:
    spec, count = CASES[name]
    assert absent_objects(lab.source(spec)) == count
    if count:
        with pytest.raises(MissingChunksError, match=f"crop_{spec.crop}.zarr: {count} chunks are absent, the first is"):
            client.ensure("instance", spec.crop, strict=True, progress=False)
        assert traces_of(lab.root, spec) == []
        chunks = "1 chunk is" if count == 1 else f"{count} chunks are"
        with pytest.warns(MissingChunksWarning, match=f"instance/{spec.crop}: {chunks} absent"):
            [file] = client.ensure_files("instance", spec.crop, progress=False)
    else:
        [file] = client.ensure_files("instance", spec.crop, strict=True, progress=False)
    assert file.missing_chunks == count
    assert_crop_file_equals_oracle(lab.cached(spec), lab.source(spec))
    with h5py.File(lab.cached(spec), "r") as stored:
        assert stored.attrs["missing_chunks"] == count


def test_a_cached_file_with_absent_chunks_is_refused_and_kept_too(lab: Lab, client: PrismClient) -> None:
    spec, _ = CASES["raw"]
    with pytest.warns(MissingChunksWarning):
        client.ensure("instance", spec.crop, progress=False)
    lab.proxy.clear()
    with pytest.raises(MissingChunksError, match="2 absent chunks"):
        client.ensure("instance", spec.crop, strict=True, progress=False)
    with pytest.warns(MissingChunksWarning, match="2 chunks"):  # every call warns, not only the one that fetched
        client.ensure("instance", spec.crop, progress=False)
    assert lab.proxy.requests == []


def test_the_command_line_says_so(lab: Lab) -> None:
    spec, _ = CASES["fill-value"]
    done = run(lab.settings(), "ensure", "instance", str(spec.crop))
    assert (done.code, done.paths) == (0, [str(lab.cached(spec))])
    assert f"warning: crop instance/{spec.crop}: 2 chunks are absent" in done.stderr
    strict = run(lab.settings(), "ensure", "instance", str(spec.crop), "--strict")
    assert (strict.code, strict.stdout) == (1, "")
    assert "error[missing_chunks]: " in strict.stderr
    assert "remedy: Leave out strict" in strict.stderr
    assert unfinished(lab.root) == []


def test_a_crop_that_is_whole_passes_strict(lab: Lab, client: PrismClient) -> None:
    client.ensure("instance", SPEC.crop, strict=True, progress=False)
    assert_crop_file_equals_oracle(lab.cached(SPEC), lab.source(SPEC))


def test_absent_raw_without_a_fill_value_is_refused(lab: Lab, client: PrismClient) -> None:
    with pytest.raises(MissingChunksError, match=r"raw/0\.0\.1\.0 is absent, and raw's fill_value is null"):
        client.ensure("instance", UNDEFINED.crop, progress=False)
    assert traces_of(lab.root, UNDEFINED) == []
