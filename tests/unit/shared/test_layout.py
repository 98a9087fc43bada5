"""The file contract's names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismcache import layout
from prismcache.layout import (
    cache_state,
    covers,
    crop_file_name,
    crop_path,
    format_channels,
    manifest_path,
    parse_channels,
    parse_crop_file_name,
    parse_file_name,
    parse_manifest_name,
    raw_dataset,
    sources_path,
)
from prismcache.schema import NO_CONTEXT, Context, CropFile, Product, Split

CHANNELS = st.sets(st.integers(0, 9999), min_size=1, max_size=40) | st.sets(st.integers(0, 20), min_size=1)
CROPS = st.integers(0, 999_999)


@pytest.mark.parametrize(
    ("channels", "text"),
    [
        ((0,), "00"),
        ((0, 1), "00-01"),
        ((0, 1, 2, 5), "00-02_05"),
        ((5, 2, 1, 0, 1), "00-02_05"),
        ((9, 10, 11), "09-11"),
        ((99, 100, 101, 9999), "99-101_9999"),
        ((0, 2, 4), "00_02_04"),
    ],
)
def test_channels_are_written_as_runs(channels: tuple[int, ...], text: str) -> None:
    assert format_channels(channels) == text
    assert parse_channels(text) == tuple(sorted(set(channels)))


@given(CHANNELS)
def test_channels_come_back_from_their_name(channels: set[int]) -> None:
    assert parse_channels(format_channels(channels)) == tuple(sorted(channels))


@given(st.text("0123456789_-", max_size=12) | st.text(max_size=6))
def test_only_what_is_written_is_read(text: str) -> None:
    try:
        found = parse_channels(text)
    except ValueError:
        return
    assert format_channels(found) == text


@given(CROPS, st.none() | CHANNELS.map(lambda found: tuple(sorted(found))))
def test_a_file_name_tells_crop_and_channels(crop: int, channels: tuple[int, ...] | None) -> None:
    assert parse_crop_file_name(crop_file_name(crop, channels)) == (crop, channels)


CONTEXTS = st.just("all") | st.tuples(*(st.integers(0, 99_999),) * 3)


@given(CROPS, st.none() | CHANNELS.map(lambda found: tuple(sorted(found))), CONTEXTS)
def test_a_file_name_tells_the_context(crop: int, channels: tuple[int, ...] | None, context: Context) -> None:
    name = crop_file_name(crop, channels, context)
    assert parse_file_name(name) == (crop, channels, context, Product.CROP)
    assert (parse_crop_file_name(name) is None) is (context != NO_CONTEXT)


def test_names_with_context_or_product_are_those_that_users_know() -> None:
    assert crop_file_name(2, None, (16, 46, 46)) == "crop_2.ctx16-46-46.h5"
    assert crop_file_name(2, (0, 1, 2), (16, 46, 46)) == "crop_2.ch00-02.ctx16-46-46.h5"
    assert crop_file_name(2, None, "all") == "crop_2.ctx-all.h5"
    assert crop_file_name(2, product=Product.AVG_BARCODES) == "crop_2.avg_barcodes.h5"
    assert str(manifest_path(Split.INSTANCE, 2, product=Product.FACTS)) == (
        ".prismcache/manifests/instance/crop_2.facts.json"
    )


@pytest.mark.parametrize(
    ("held", "wanted", "serves"),
    [
        (NO_CONTEXT, NO_CONTEXT, True), ("all", NO_CONTEXT, False), ((1, 1, 1), NO_CONTEXT, False),
        ("all", "all", True), ("all", (9, 9, 9), True), ((9, 9, 9), "all", False), (NO_CONTEXT, "all", False),
        ((2, 3, 4), (2, 3, 4), True), ((2, 3, 4), (1, 3, 0), True), ((2, 3, 4), (3, 0, 0), False),
        (NO_CONTEXT, (0, 0, 1), False),
    ],
)  # fmt: skip
def test_more_context_serves_less_but_never_none(held: Context, wanted: Context, *, serves: bool) -> None:
    assert covers(held, wanted) is serves


@pytest.mark.parametrize("name", [("crop_2.ch00-02.ctx-all.h5"), "crop_2.facts.json", "crop_2.h5", "crop_2.fgbg.h5"])
def test_the_name_of_a_manifest_tells_what_the_name_of_its_file_tells(name: str) -> None:
    found = parse_file_name(name)
    assert found is not None
    assert parse_manifest_name(manifest_path(Split.SEMANTIC, *found).name) == found
    assert parse_manifest_name(sources_path(Split.SEMANTIC, *found).name) is None


@pytest.mark.parametrize("product", Product)
def test_a_file_name_tells_the_product(product: Product) -> None:
    assert parse_file_name(crop_file_name(3, product=product)) == (3, None, NO_CONTEXT, product)


def test_a_product_has_neither_channels_nor_context() -> None:
    with pytest.raises(ValueError, match="made from the whole crop"):
        crop_file_name(3, (1,), product=Product.UNLABELLED)
    with pytest.raises(ValueError, match="made from the whole crop"):
        crop_file_name(3, None, "all", Product.UNLABELLED)


@pytest.mark.parametrize(
    "name",
    [
        "crop_1.ctx0-0-0.h5", "crop_1.ctx01-2-3.h5", "crop_1.ctx1-2.h5", "crop_1.ctxall.h5", "crop_1.ctx--1-2-3.h5",
        "crop_1.ctx-all.ch00.h5", "crop_1.facts.h5", "crop_1.unlabelled.json", "crop_1.crop.h5", "crop_1.ctx.h5",
        "crop_1.ch00.unlabelled.h5",
    ],
)  # fmt: skip
def test_other_contexts_and_products_name_no_file(name: str) -> None:
    assert parse_file_name(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "crop_.h5", "crop_00.h5", "crop_-1.h5", "crop_1000000.h5", "crop_1.hdf5", "crop_1.h5 ", "crop_1.h5\n",
        ".crop_1.h5.tmp", ".crop_1.h5.0a.tmp", "crop_1.json", "xcrop_1.h5", "crop_1.ch.h5", "crop_1.ch0.h5",
        "crop_1.ch01-00.h5", "crop_1.ch00_01.h5", "crop_1.ch00-00.h5", "crop_1.ch00_00.h5", "crop_1.ch-1.h5",
        "crop_1.ch00__02.h5", "crop_1.ch00-.h5", "crop_1.sources.h5", "crop_\u0661.h5", "crop_1.ch\u0660\u0660.h5",
    ],
)  # fmt: skip
def test_other_names_are_no_crops(name: str) -> None:
    assert parse_crop_file_name(name) is None


def test_a_name_with_an_endless_run_of_channels_is_no_crop_and_costs_nothing() -> None:
    assert parse_crop_file_name("crop_1.ch00-9999999999.h5") is None


@pytest.mark.parametrize(("channel", "name"), [(0, "raw/ch_00"), (17, "raw/ch_17"), (123, "raw/ch_123")])
def test_datasets_are_named_as_the_reference_names_them(channel: int, name: str) -> None:
    assert raw_dataset(channel) == name


def test_paths_are_those_of_the_reference_and_beside_them() -> None:
    assert str(crop_path(Split.INSTANCE, 0)) == "instance/crop_0.h5"
    assert str(crop_path(Split.SEMANTIC, 12, (0, 1, 5))) == "semantic/crop_12.ch00-01_05.h5"
    assert str(manifest_path(Split.INSTANCE, 0)) == ".prismcache/manifests/instance/crop_0.json"
    assert str(manifest_path(Split.INSTANCE, 0, (3,))) == ".prismcache/manifests/instance/crop_0.ch03.json"
    assert str(sources_path(Split.INSTANCE, 0, (3,))) == ".prismcache/manifests/instance/crop_0.ch03.sources.json"


@given(st.lists(st.tuples(st.sampled_from(Split), CROPS, st.none() | CHANNELS.map(tuple)), unique_by=str))
def test_no_two_files_share_a_path(names: list) -> None:
    distinct = {(split, crop, None if channels is None else frozenset(channels)) for split, crop, channels in names}
    for path in (crop_path, manifest_path, sources_path):
        assert len({path(*name) for name in names}) == len(distinct)


def test_the_docstring_lists_every_object_of_a_file() -> None:
    for word in ("raw/ch_NN", layout.LABELS, layout.LABELS_IDS, *("offset", "resolution", "voxel_size", "axis_names")):
        assert f"``{word}``" in (layout.__doc__ or "")


@pytest.mark.parametrize(
    ("names", "is_making", "state"),
    [
        ([], False, "absent"),
        ([], True, "making"),
        (["crop_0.ch00.h5"], False, "partial"),
        (["crop_0.ch00.h5"], True, "making"),
        (["crop_0.ch00.h5", "crop_0.h5"], True, "cached"),
    ],
)
def test_the_state_of_a_crop_follows_from_its_files(names: list[str], is_making: bool, state: str) -> None:
    files = [CropFile(split="instance", crop=0, channels=(0,), path=f"/x/{n}", size=1, sha256="") for n in names]

    assert cache_state(files, is_making=is_making) == state
