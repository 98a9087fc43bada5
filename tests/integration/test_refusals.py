"""What is no PRISM crop, or cannot be had, is refused: a typed error with crop, array and numbers, and no file."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zarr

from prismcache import (
    InvalidSourceError,
    MisalignedError,
    PrismClient,
    PrismError,
    RequestError,
    SourceCorruptError,
    SourceDeniedError,
    SourceUnreachableError,
    UnknownChannelError,
    UnknownCropError,
    UnknownSplitError,
)
from tests.support.cache_root import Lab, files_below, published, tiny_spec, traces_of, unfinished
from tests.support.crops import CropSpec, set_attributes
from tests.support.faults import Status
from tests.support.labs import running_lab
from tests.support.processes import run, workers_of

SPEC = tiny_spec()
OFFSET, RESOLUTION = list(SPEC.raw_offset), list(SPEC.resolution)
MB = 1_000_000


def _edit(array: str, **fields: Any) -> Callable[[Path], None]:
    """Change fields of an array's ``.zarray``."""

    def edit(folder: Path) -> None:
        path = folder / array / ".zarray"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return edit


def _attributes(array: Any, **attributes: Any) -> Callable[[Path], None]:
    return lambda folder: set_attributes(folder, array, attributes)


def _write(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content)


def _labels_at(*shift: float) -> Callable[[Path], None]:
    offset = [o + s * r for o, s, r in zip(OFFSET, shift, RESOLUTION, strict=True)]
    return _attributes("labels", offset=offset)


def _without_offset(*arrays: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for array in arrays:
            (folder / array / ".zattrs").unlink()

    return remove


@dataclass(frozen=True)
class Case:
    """A crop that is damaged in the bucket, and what the refusal is and names."""

    damage: Callable[[Path], object]
    error: type[PrismError]
    names: tuple[str, ...]
    spec: CropSpec = SPEC


CASES = {
    # Where the labels lie in raw, whose 20 x 48 x 48 voxels they (12 x 30 x 32) must not leave.
    "shift-not-whole": Case(_labels_at(4, 9.5, 8), MisalignedError, ("(4.0, 9.5, 8.0)", "not whole")),
    "shift-nearly-whole": Case(_labels_at(4.02, 9, 8), MisalignedError, ("(4.02", "not whole")),
    **{
        f"before-raw-on-{axis}": Case(
            _labels_at(*(-1 if i == number else 3 for i in range(3))), MisalignedError, ("(20, 48, 48)", "-1")
        )
        for number, axis in enumerate("zyx")
    },
    **{
        f"past-raw-on-{axis}": Case(
            _labels_at(*(free + 1 if i == number else 3 for i in range(3))),
            MisalignedError,
            ("(20, 48, 48)", str(end)),
        )
        for number, (axis, free, end) in enumerate((("z", 8, 21), ("y", 18, 49), ("x", 16, 49)))
    },
    "labels-larger-than-raw": Case(
        lambda _: None,
        MisalignedError,
        ("(30, 30, 32)", "(20, 48, 48)"),
        dataclasses.replace(SPEC, labels_shape=(30, 30, 32)),
    ),
    "unequal-resolutions": Case(
        _attributes("labels", offset=OFFSET, resolution=[400, 168, 170]),
        MisalignedError,
        ("resolution", "(400.0, 168.0, 168.0)", "(400.0, 168.0, 170.0)"),
    ),
    "no-offset-of-labels": Case(_without_offset("labels"), MisalignedError, ("offset of labels", "(20, 48, 48)")),
    "no-offset-of-raw": Case(_without_offset("raw"), MisalignedError, ("offset of raw", "(12, 30, 32)")),
    "no-offsets": Case(_without_offset("raw", "labels"), MisalignedError, ("raw and labels", "(12, 30, 32)")),
    # Attributes that are no numbers.
    "nan": Case(_attributes("raw", offset=[float("nan"), 0, 0]), InvalidSourceError, ("raw", ".zattrs", "NaN")),
    "infinite": Case(_attributes("labels", offset=[0, float("inf"), 0]), InvalidSourceError, ("labels", "Infinity")),
    "overflowing": Case(
        _write("labels/.zattrs", '{"offset": [1e999, 0, 0]}'), InvalidSourceError, ("labels", "offset")
    ),
    "offset-of-two": Case(_attributes("labels", offset=[0, 0]), InvalidSourceError, ("labels", "offset = [0, 0]")),
    "offset-a-text": Case(_attributes("raw", offset="0 0 0"), InvalidSourceError, ("raw", "offset = '0 0 0'")),
    "resolution-zero": Case(
        _attributes("raw", offset=OFFSET, resolution=[400, 0, 168]),
        InvalidSourceError,
        ("resolution = (400.0, 0.0, 168.0)",),
    ),
    "resolution-negative": Case(
        _attributes("raw", offset=OFFSET, resolution=[400, 168, -168]), InvalidSourceError, ("above 0",)
    ),
    # Metadata that zarr cannot read, or that is no crop's.
    "broken-zarray": Case(
        _write("raw/.zarray", '{"shape": [3, 20'), InvalidSourceError, ("raw", ".zarray", "not JSON")
    ),
    "broken-zattrs": Case(_write("labels/.zattrs", "offset: 1"), InvalidSourceError, ("labels", ".zattrs", "not JSON")),
    "zattrs-a-list": Case(_write("raw/.zattrs", "[1, 2]"), InvalidSourceError, ("raw", ".zattrs", "object")),
    "deep-json": Case(_write("raw/.zattrs", "[" * 100_000), InvalidSourceError, ("raw", ".zattrs")),
    "empty-zarray": Case(_write("labels/.zarray", "{}"), InvalidSourceError, ("labels", "zarr cannot read")),
    "huge-zattrs": Case(_write("raw/.zattrs", " " * 2_000_000 + "{}"), InvalidSourceError, ("2000002 bytes",)),
    "no-raw": Case(
        lambda folder: (folder / "raw/.zarray").unlink(), InvalidSourceError, ("'raw'", "neither raw/.zarray")
    ),
    "no-labels": Case(
        lambda folder: (folder / "labels/.zarray").unlink(), InvalidSourceError, ("'labels'", "no metadata")
    ),
    "raw-of-three-axes": Case(
        _edit("raw", shape=[20, 48, 48], chunks=[9, 28, 36]), InvalidSourceError, ("'raw'", "3 axes (20, 48, 48)")
    ),
    "labels-of-four-axes": Case(
        _edit("labels", shape=[2, 12, 30, 32], chunks=[1, 7, 25, 30]), InvalidSourceError, ("'labels'", "4 axes")
    ),
    "raw-of-16-bits": Case(_edit("raw", dtype="<u2"), InvalidSourceError, ("'raw'", "uint16")),
    "labels-of-floats": Case(_edit("labels", dtype="<f8"), InvalidSourceError, ("'labels'", "float64")),
    "labels-of-booleans": Case(_edit("labels", dtype="|b1"), InvalidSourceError, ("'labels'", "bool")),
    "labels-of-objects": Case(
        _edit("labels", dtype="|O", filters=[{"id": "pickle"}]), InvalidSourceError, ("'labels'",)
    ),
    "empty-shape": Case(_edit("labels", shape=[0, 30, 32]), InvalidSourceError, ("'labels'", "(0, 30, 32)")),
    "codec-not-allowed": Case(
        _edit("raw", compressor={"id": "base64"}), InvalidSourceError, ("'raw'", "'base64'", "not supported")
    ),
    "codec-unknown": Case(_edit("raw", compressor={"id": "nonesuch"}), InvalidSourceError, ("'raw'", "nonesuch")),
    "negative-fill-value": Case(_edit("labels", dtype="<i8", fill_value=-1), InvalidSourceError, ("'labels'", "-1")),
    "too-many-chunks": Case(
        _edit("raw", shape=[3, 2_000_000, 48, 48]), InvalidSourceError, ("'raw'", "(3, 2000000, 48, 48)", "chunks")
    ),
    # Chunks whose content is not what the metadata says, though the bucket serves what it lists.
    "chunk-of-another-shape": Case(_edit("raw", chunks=[3, 9, 28, 35]), SourceCorruptError, ("raw/0.", "claims")),
    "chunk-not-compressed": Case(_write("raw/0.1.0.1", "x" * 5000), SourceCorruptError, ("raw/0.1.0.1", "27216")),
    "chunk-empty": Case(_write("labels/0.0.1", ""), SourceCorruptError, ("labels/0.0.1", "0 bytes")),
    # Ids that are none, of which one, in the last chunk, is enough.
    **{
        f"negative-ids-{dtype}": Case(
            lambda folder: zarr.open_array(folder / "labels", mode="r+").set_basic_selection((11, 29, 31), -7),
            InvalidSourceError,
            ("labels", "-7"),
            dataclasses.replace(SPEC, labels=dataclasses.replace(SPEC.labels, dtype=dtype)),
        )
        for dtype in ("<i8", ">i4", "<i2", "|i1")
    },
}
CASES = {
    name: dataclasses.replace(case, spec=dataclasses.replace(case.spec, crop=crop))
    for crop, (name, case) in enumerate(CASES.items(), start=1)
}
HUGE = {
    "one-chunk": ([3, 20_000_000, 48, 48], [3, 20_000_000, 48, 48]),  # 138 GB
    "many-chunks": ([3, 300_000, 3000, 3000], [3, 300_000, 60, 60]),  # 8.1 TB in 2,500 chunks
    "channels": ([2**31, 20, 48, 48], [2**31, 9, 28, 36]),
    "overflow": ([3, 20, 48, 2**62], [3, 9, 28, 2**62]),
}
HUGE_SPECS = {name: dataclasses.replace(SPEC, crop=crop) for crop, name in enumerate(HUGE, start=900)}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    specs = [SPEC, *(case.spec for case in CASES.values()), *HUGE_SPECS.values()]
    with running_lab(tmp_path_factory.mktemp("refusals"), specs) as lab:
        for case in CASES.values():
            case.damage(lab.source(case.spec))
        for name, (shape, chunks) in HUGE.items():
            folder = lab.source(HUGE_SPECS[name])
            _edit("raw", shape=shape, chunks=chunks)(folder)
            _edit("labels", shape=shape[1:], chunks=chunks[1:])(folder)
            for array in ("raw", "labels"):
                set_attributes(folder, array, {"offset": [0, 0, 0], "resolution": RESOLUTION})
        yield lab


@pytest.fixture(scope="module")
def client(lab: Lab) -> Iterator[PrismClient]:
    with PrismClient(settings=lab.settings(s3_object_timeout=3)) as client:
        yield client


@pytest.fixture
def fresh(lab: Lab, client: PrismClient) -> Iterator[Lab]:
    """The lab with nothing cached, and no rules or requests at the proxy."""
    client.remove("instance", None)
    lab.proxy.clear()
    yield lab
    lab.proxy.clear()


@pytest.fixture
def elsewhere(lab: Lab, tmp_path: Path) -> Lab:
    """The lab with an empty cache folder of the test's own."""
    lab.proxy.clear()
    return dataclasses.replace(lab, root=tmp_path / "root")


@pytest.mark.parametrize("name", CASES)
def test_a_crop_that_is_not_right_is_refused(lab: Lab, client: PrismClient, name: str) -> None:
    case = CASES[name]
    with pytest.raises(case.error) as caught:
        client.ensure("instance", case.spec.crop, progress=False)
    assert type(caught.value) is case.error
    text = str(caught.value)
    for part in (f"instance/crop_{case.spec.crop}.zarr", *case.names):
        assert part in text
    assert len(text) < 1000
    assert caught.value.remedy
    assert traces_of(lab.root, case.spec) == []
    assert unfinished(lab.root) == []


def test_the_refusals_did_no_harm(lab: Lab, client: PrismClient) -> None:
    [path] = client.ensure("instance", 0, progress=False)
    assert path == str(lab.cached(SPEC))


@pytest.mark.parametrize("split", ["test", "Instance", ""])
def test_unknown_split(client: PrismClient, split: str) -> None:
    with pytest.raises(UnknownSplitError, match="is not a split; the splits are 'instance', 'semantic', 'synapses'"):
        client.ensure(split, 0, progress=False)


def test_unknown_crop_says_which_exist(fresh: Lab, client: PrismClient) -> None:
    with pytest.raises(UnknownCropError) as caught:
        client.ensure("instance", 999, progress=False)
    assert "crop 999" in str(caught.value)
    assert "it has 0, 1, 2, 3, " in str(caught.value)
    with pytest.raises(UnknownCropError, match=r"crop 0 of split 'semantic'.*no crop"):
        client.ensure("semantic", 0, progress=False)
    assert published(fresh.root) == unfinished(fresh.root) == []


def test_a_channel_that_the_crop_lacks(fresh: Lab, client: PrismClient) -> None:
    with pytest.raises(UnknownChannelError, match=r"instance/crop_0.zarr has channels 0-2, not 3, 17"):
        client.ensure("instance", 0, channels=[1, 3, 17], progress=False)
    assert published(fresh.root) == unfinished(fresh.root) == []
    client.ensure("instance", 0, progress=False)
    with pytest.raises(UnknownChannelError, match="0-2, not 3"):
        client.ensure("instance", 0, channels=3, progress=False)
    assert published(fresh.root) == ["instance/crop_0.h5"]
    for key in fresh.fetched(SPEC):
        assert fresh.fetched(SPEC)[key] <= 3


def test_one_bad_crop_does_not_stop_the_others(fresh: Lab, client: PrismClient) -> None:
    bad, worse = CASES["nan"].spec.crop, CASES["no-raw"].spec.crop
    with pytest.raises(InvalidSourceError) as caught:
        client.ensure("instance", [bad, 0, worse], progress=False)
    assert f"crop_{bad}.zarr" in str(caught.value)
    assert any(f"instance/{worse}" in note and "invalid_source" in note for note in caught.value.__notes__)
    assert published(fresh.root) == ["instance/crop_0.h5"]


@pytest.mark.parametrize("name", HUGE)
def test_huge_shapes_are_refused_in_little_memory(fresh: Lab, client: PrismClient, name: str) -> None:
    with pytest.raises(PrismError) as caught:
        client.ensure("instance", HUGE_SPECS[name].crop, progress=False)
    assert max(worker.peak_memory for worker in workers_of(os.getpid())) < 250 * MB
    assert caught.value.code in {"invalid_source", "memory_limit", "no_space"}
    assert published(fresh.root) == unfinished(fresh.root) == []


@pytest.mark.parametrize("name", ["raw/.zattrs", "labels/.zattrs", "raw/.zarray", "labels/.zarray"])
def test_listed_metadata_that_is_gone(fresh: Lab, client: PrismClient, name: str) -> None:
    """The reference takes offset 0 where ``.zattrs`` gives 404, and gives wrong voxels."""
    fresh.proxy.add(Status(404), key=name)
    with pytest.raises(SourceCorruptError, match=name):
        client.ensure("instance", 0, progress=False)
    assert published(fresh.root) == unfinished(fresh.root) == []


def test_an_unreachable_endpoint_is_reported_within_seconds(elsewhere: Lab) -> None:
    with socket.socket() as closed:  # bound and not listening: connections are refused, and nobody else gets the port
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        start = time.monotonic()
        with PrismClient(settings=elsewhere.settings(s3_endpoint_url=endpoint)) as client:
            with pytest.raises(SourceUnreachableError, match=endpoint):
                client.ensure("instance", 0, progress=False)
            with pytest.raises(SourceUnreachableError, match=endpoint):
                client.ensure("instance", None, progress=False)
        done = run(elsewhere.settings(s3_endpoint_url=endpoint), "ensure", "instance", "0")
        assert time.monotonic() - start < 30
    assert (done.code, done.stdout) == (1, "")
    assert "error[source_unreachable]: listing of s3://e11bio-prism/" in done.stderr
    assert "PRISMCACHE_S3_ENDPOINT_URL" in done.stderr
    assert published(elsewhere.root) == unfinished(elsewhere.root) == []


@pytest.mark.parametrize("listing", [True, False], ids=["listing", "object"])
def test_a_denied_request_is_not_repeated(fresh: Lab, client: PrismClient, listing: bool) -> None:
    fresh.proxy.add(Status(403), key="" if listing else "raw/.zarray", listing=listing)
    with pytest.raises(SourceDeniedError, match="403 AccessDenied"):
        client.ensure("instance", 0, progress=False)
    asked = Counter(seen.key for seen in fresh.proxy.requests if seen.listing == listing)
    assert set(asked.values()) == {1}  # each of the metadata documents, which are asked for together
    assert published(fresh.root) == unfinished(fresh.root) == []


def test_a_bucket_that_does_not_exist(elsewhere: Lab) -> None:
    with (
        PrismClient(settings=elsewhere.settings(s3_bucket="none-such")) as client,
        pytest.raises(PrismError, match="NoSuchBucket") as caught,
    ):
        client.ensure("instance", 0, progress=False)
    assert caught.value.code == "config_invalid"
    assert "PRISMCACHE_S3_BUCKET" in caught.value.remedy


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("ensure", "none", "0"), 2, "error[unknown_split]: 'none' is not a split"),
        (("ensure", "instance", "999"), 1, "error[unknown_crop]: crop 999 of split 'instance'"),
        (("verify", "instance", "3"), 1, "error[not_cached]"),
    ],
)
def test_the_command_line_says_what_is_wrong(fresh: Lab, arguments: tuple[str, ...], code: int, words: str) -> None:
    done = run(fresh.settings(), *arguments)
    assert (done.code, done.stdout) == (code, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count(words.partition("]: ")[2] or words) == 1, "the reason is said once"
    assert published(fresh.root) == []


def test_requests_that_cannot_be_meant_ask_nobody(elsewhere: Lab) -> None:
    with PrismClient(settings=elsewhere.settings()) as client:
        for crops, channels in ((True, None), ("x", None), (0, []), (0, 1.5)):
            with pytest.raises(RequestError):
                client.ensure("instance", crops, channels=channels, progress=False)
    assert elsewhere.proxy.requests == []
    assert files_below(elsewhere.root) == []
