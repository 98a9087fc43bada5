"""What a crop's zarr metadata says, or a refusal that names crop, array and numbers; never anything else."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prismcache.errors import InvalidSourceError
from prismcache.layout import SourceObject
from prismcache_service.pipeline.plan.metadata import ArraySource, CropSource, parse_array, read_crop
from tests.support.crops import BUCKET, PREFIX, small_spec, write_crop
from tests.support.folder_source import FolderSource

WHERE = "instance/crop_0.zarr: array 'labels'"
V2: dict[str, Any] = {
    "zarr_format": 2, "shape": [200, 500, 500], "chunks": [25, 63, 125], "dtype": "<u8", "fill_value": 0, "order": "C",
    "compressor": {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0}, "filters": None,
}  # fmt: skip
V3: dict[str, Any] = {
    "zarr_format": 3, "node_type": "array", "shape": [200, 500, 500], "data_type": "uint64", "fill_value": 0,
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [25, 63, 125]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
    "attributes": {"offset": [28000.0, 46200.0, 29400.0], "resolution": [400, 168, 168]},
}  # fmt: skip
ATTRIBUTES: dict[str, Any] = {"offset": [28000.0, 46200.0, 29400.0], "resolution": [400, 168, 168]}


def parsed(array: Any = V2, attributes: Any = ATTRIBUTES, *, name: str = "labels", ndim: int = 3) -> ArraySource:
    documents = {".zarray": array if isinstance(array, bytes) else json.dumps(array).encode()}
    if attributes is not None:
        documents[".zattrs"] = attributes if isinstance(attributes, bytes) else json.dumps(attributes).encode()
    return parse_array(WHERE, name, ndim, documents)


def test_the_published_metadata_is_read() -> None:
    found = parsed()
    assert (found.name, found.shape, found.chunks) == ("labels", (200, 500, 500), (25, 63, 125))
    assert (found.dtype, found.fill_value) == (np.dtype("<u8"), 0)
    assert (found.offset, found.resolution) == ((28000.0, 46200.0, 29400.0), (400.0, 168.0, 168.0))
    assert found.key((3, 0, 12)) == "labels/3.0.12"
    assert found.chunk_bytes == found.inner_bytes == 25 * 63 * 125 * 8
    assert found.codec.compressors == ("blosc",)


@pytest.mark.parametrize(("separator", "key"), [(".", "labels/1.2.3"), ("/", "labels/1/2/3")], ids=["dot", "slash"])
def test_v2_keys_follow_the_separator(separator: str, key: str) -> None:
    assert parsed(V2 | {"dimension_separator": separator}).key((1, 2, 3)) == key


@pytest.mark.parametrize(
    ("encoding", "key"),
    [
        ({"name": "default", "configuration": {"separator": "/"}}, "labels/c/1/2/3"),
        ({"name": "default", "configuration": {"separator": "."}}, "labels/c.1.2.3"),
        ({"name": "v2", "configuration": {"separator": "."}}, "labels/1.2.3"),
        ({"name": "v2", "configuration": {"separator": "/"}}, "labels/1/2/3"),
    ],
)
def test_v3_keys_follow_the_chunk_key_encoding(encoding: dict[str, Any], key: str) -> None:
    document = json.dumps(V3 | {"chunk_key_encoding": encoding}).encode()
    found = parse_array(WHERE, "labels", 3, {"zarr.json": document})
    assert found.key((1, 2, 3)) == key
    assert found.offset == (28000.0, 46200.0, 29400.0)


def test_a_transposed_v3_array_is_refused() -> None:
    document = json.dumps(V3 | {"dimension_names": ["x", "y", "z"]}).encode()
    with pytest.raises(InvalidSourceError, match="has the axes x, y, z, and a crop's end with z, y, x"):
        parse_array(WHERE, "labels", 3, {"zarr.json": document})


def test_a_shards_inner_chunks_are_what_is_decoded_at_once() -> None:
    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [5, 21, 25], "codecs": V3["codecs"], "index_codecs": V3["codecs"], "index_location": "start",
        },
    }  # fmt: skip
    found = parse_array(WHERE, "labels", 3, {"zarr.json": json.dumps(V3 | {"codecs": [sharding]}).encode()})
    assert found.chunks == (25, 63, 125)
    assert found.inner_bytes == 5 * 21 * 25 * 8
    assert found.codec.sharding is not None
    assert not found.codec.sharding.index_at_end


@pytest.mark.parametrize(("fill", "meant"), [(None, 0), (0, 0), (7, 7), (2**64 - 1, 2**64 - 1)])
def test_a_fill_value_is_read_whatever_its_size(fill: int | None, meant: int) -> None:
    assert parsed(V2 | {"fill_value": fill}).fill_value == meant


NOT_METADATA = [b"", b"{", b"[]", b"null", b"3", b'"x"', b"\xff\xfe", b"<html></html>", b"[" * 100_000, b"\0" * 64]


@pytest.mark.parametrize("document", NOT_METADATA, ids=[repr(d[:12]) for d in NOT_METADATA])
@pytest.mark.parametrize("which", [".zarray", ".zattrs"])
def test_a_document_that_is_no_json_object_is_refused_by_name(which: str, document: bytes) -> None:
    with pytest.raises(InvalidSourceError, match=rf"crop_0.zarr: array 'labels': \{which} is not"):
        parsed(document) if which == ".zarray" else parsed(attributes=document)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_what_json_does_not_know_is_refused(constant: str) -> None:
    with pytest.raises(InvalidSourceError, match=f".zattrs is not JSON: {constant} is not a JSON number"):
        parsed(attributes=f'{{"offset": [0, {constant}, 0]}}'.encode())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"shape": [200, 500]}, r"\(200, 500\)|shape"),
        ({"shape": [2, 200, 500, 500], "chunks": [1, 25, 63, 125]}, r"4 axes \(2, 200, 500, 500\), not 3"),
        ({"shape": [0, 500, 500]}, r"empty shape \(0, 500, 500\)"),
        ({"shape": [-1, 500, 500]}, "."),
        ({"chunks": [0, 63, 125]}, "."),
        ({"chunks": [1, 1, 1]}, r"50000000 chunks \(1, 1, 1\), more than 100000"),
        ({"shape": [2**62, 2**62, 2**62]}, "chunks"),
        ({"shape": [2**70, 5, 5]}, "."),
        ({"shape": "big"}, "."),
        ({"shape": None}, "."),
        ({"dtype": "<f4"}, "dtype float32, not an integer"),
        ({"dtype": "|b1"}, "dtype bool, not an integer"),
        ({"dtype": "<M8[ns]"}, "."),
        ({"dtype": "|O"}, "."),
        ({"dtype": "<c8"}, "."),
        ({"dtype": [["a", "<u8"]]}, "."),
        ({"dtype": "uint65"}, "."),
        ({"fill_value": -1, "dtype": "<i8"}, "fill value -1, which is negative"),
        ({"fill_value": 256, "dtype": "|u1"}, "."),
        ({"fill_value": "many"}, "."),
        ({"order": "Z"}, "."),
        ({"zarr_format": 4}, "."),
        ({"compressor": "blosc"}, "."),
        ({"compressor": {"id": "no such codec"}}, "no such codec"),
        ({"filters": 3}, "."),
    ],
    ids=str,
)
def test_metadata_of_no_crop_is_refused_with_crop_array_and_numbers(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidSourceError, match=named) as caught:
        parsed(V2 | changes)
    assert str(caught.value).startswith(WHERE)


def test_raw_must_be_uint8() -> None:
    document = V2 | {"shape": [2, 9, 9, 9], "chunks": [1, 9, 9, 9], "dtype": "<u2"}
    with pytest.raises(InvalidSourceError, match="dtype uint16, not uint8"):
        parsed(document, name="raw", ndim=4)
    assert parsed(document | {"dtype": "|u1"}, name="raw", ndim=4).dtype == np.uint8


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4)
    | st.sampled_from(["<u8", "|u1", "uint64", "blosc", ".", "/", "C", "zstd", "bytes", "little"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["id", "x"]), inner, max_size=2),
    max_leaves=6,
)


@given(st.data())
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_in_a_field_gives_an_array_or_a_refusal_and_nothing_else(data: st.DataObject) -> None:
    base = data.draw(st.sampled_from([V2, V3]))
    changed = dict(base)
    for key in data.draw(st.sets(st.sampled_from(sorted(base)), min_size=1, max_size=2)):
        if data.draw(st.booleans()):
            changed[key] = data.draw(JSON)
        else:
            changed.pop(key)
    document = json.dumps(changed).encode()
    try:
        found = parse_array(WHERE, "labels", 3, {"zarr.json" if base is V3 else ".zarray": document})
    except InvalidSourceError as error:
        assert str(error).startswith(WHERE)  # noqa: PT017 - metadata that can be read is as right
        return
    assert min(found.shape) >= 1
    assert min(found.chunks) >= 1
    assert len(found.shape) == len(found.chunks) == 3
    assert isinstance(found.key((0, 0, 0)), str)


# From a listed crop


def read_listed(root: Path, folder: str, **changes: SourceObject | None) -> CropSource:
    """Read the metadata of a listed crop; `changes` replace (or, None, remove) listed objects."""

    async def main() -> CropSource:
        source = FolderSource(root)
        objects = await source.list_objects(folder)
        listed = {key: item for key, item in (objects | changes).items() if item is not None}
        return await read_crop(source, folder, listed)

    return asyncio.run(main())


@pytest.fixture(scope="module")
def crop_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bucket's prefix with one crop, to be read only."""
    root = tmp_path_factory.mktemp("bucket")
    write_crop(root, small_spec(channels=1))
    return root / BUCKET / PREFIX


@pytest.mark.parametrize("array", ["raw", "labels"])
def test_an_array_without_metadata_is_refused_by_name(crop_root: Path, array: str) -> None:
    with pytest.raises(InvalidSourceError, match=f"crop_0.zarr: array '{array}' has no metadata.*{array}/.zarray"):
        read_listed(crop_root, "instance/crop_0.zarr", **{f"{array}/.zarray": None})


def test_metadata_of_a_gigabyte_is_refused_before_it_is_fetched(crop_root: Path) -> None:
    huge = SourceObject(key="labels/.zattrs", size=2**30, etag="")
    with pytest.raises(InvalidSourceError, match=r"labels/\.zattrs has 1073741824 bytes, too many for metadata"):
        read_listed(crop_root, "instance/crop_0.zarr", **{"labels/.zattrs": huge})


def test_an_array_in_both_formats_is_read_as_v3() -> None:
    documents = {"zarr.json": json.dumps(V3).encode(), ".zarray": json.dumps(V2 | {"dtype": "<u2"}).encode()}
    assert parse_array(WHERE, "labels", 3, documents).dtype == np.dtype("<u8")


def test_raw_of_a_million_channels_is_refused() -> None:
    document = V2 | {"shape": [10**6, 9, 9, 9], "chunks": [10**6, 9, 9, 9], "dtype": "|u1"}
    with pytest.raises(InvalidSourceError, match="1000000 channels, more than"):
        parsed(document, name="raw", ndim=4)
