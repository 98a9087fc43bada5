"""Catalog files: the published splits, a lab's own, and files that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from prismcache import ConfigError
from prismcache.catalog import load_splits, published
from prismcache.schema import Product, Split
from prismcache.splits import PRODUCTS, SplitEntry
from tests.support.own_splits import LAB_CATALOG


def test_the_published_splits_are_those_of_the_schema() -> None:
    assert list(published()) == list(Split)
    assert [*PRODUCTS] == [product for product in Product if product is not Product.CROP]
    assert all(entry.definition == "" and entry.place == {} for entry in published().values())
    assert published().same_tissue("instance", 2) == ("semantic/0",)
    assert published().same_tissue("semantic", 1) == ()


def test_a_labs_catalog_adds_to_the_published_splits(tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    path.write_text(LAB_CATALOG)
    splits = load_splits(path)
    assert list(splits) == [*published(), "mito"]
    mito = splits["mito"]
    assert mito.crop_folder(3) == "mito/crop_3.zarr"
    assert mito.place == {"s3_bucket": "lab-data", "s3_prefix": "training"}
    assert mito.datasets == ("mask",)
    assert SplitEntry.from_json(mito.to_json()) == mito
    path.write_text(LAB_CATALOG.replace("by hand", "by machine"))
    assert load_splits(path)["mito"].definition == mito.definition
    path.write_text(LAB_CATALOG.replace("volumes/image", "volumes/raw"))
    assert load_splits(path)["mito"].definition != mito.definition


def test_the_defaults_are_those_of_a_crop_of_e11(tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    path.write_text("[splits.axons]\n")
    assert load_splits(path)["axons"] == SplitEntry("axons", folder="axons", is_own=True)


@pytest.mark.parametrize(
    ("text", "line", "message", "remedy"),
    [
        ("[splits.a]\nraw = \n", 2, "is not TOML", "toml.io"),
        ("", 1, "it has no split", "[splits.NAME]"),
        ("# ours\nsplit = 1\n", 2, "unknown key 'split'", "[splits.NAME]"),
        ("splits.a = 1\n", 1, "it is not a table", "[splits.a]"),
        ("\n[splits.Mito]\n", 2, "cannot be used for a split", "small letters"),
        ("[splits.semantic]\n", 1, "that of a published split", "another name"),
        ("[splits.a]\nraw = 'x'\nchanels = 2\n", 3, "unknown key 'chanels'", "The keys are anonymous, arrays"),
        ("[splits.a]\nraw = 'x'\n[splits.b]\nraw = 3\n", 4, "3 is not text", "in quotes"),
        ("[splits.a]\nraw = '../x'\n", 2, "is not a folder", "training/mito"),
        ("[splits.a]\nraw = ''\n", 2, "is not an array", "volumes/raw"),
        ("[splits.a]\narrays = 'x'\n", 2, "'x' is not a list", "volumes/mask"),
        ("[splits.a]\nraw = 'labels'\n", 1, "one array has two roles", "once"),
        ("[splits.a]\narrays = ['x/m', 'y/m']\n", 1, "would be called 'm'", "must differ"),
        ("[splits.a]\narrays = ['x/raw']\n", 1, "would be called 'raw'", "must differ"),
        ("[splits.a]\nclasses = 'yes'\n", 2, "neither true nor false", "without quotes"),
        ("[splits.a]\nproducts = ['synapses']\n", 2, "are no products", "unlabelled"),
        ("[splits.a]\nproducts = ['fgbg']\n", 1, "'fgbg' needs labels that are classes", "classes = true"),
        ("[splits.a]\nlabels = ''\nproducts = ['facts']\n", 1, "neither classes nor products", "Name `labels`"),
        ("[splits.a]\nexpansion = 0\n", 2, "0 is not above 0", "4.8"),
        ("[splits.a]\nexpansion = nan\n", 2, "nan is not a number", "4.8"),
        ("[splits.a]\nresolution = [400, 168]\n", 2, "are not three numbers", "[400, 168, 168]"),
        ("[splits.a]\nresolution = [400, -1, 168]\n", 2, "-1 is not above 0", "4.8"),
        ("[splits.a]\noffset = ['0', 0, 0]\n", 2, "'0' is not a number", "4.8"),
        ("[splits.a]\nsame_tissue = { x = 'instance/2' }\n", 2, "does not name two crops", "instance/2"),
        ("[splits.a]\nsame_tissue = { 0 = 'instance 2' }\n", 2, "does not name two crops", "instance/2"),
        ("[splits.a]\nbucket = 's3://x/y'\n", 2, "is not a bucket name", "without s3://"),
        ("[splits.a]\nendpoint_url = 'lab:9000'\n", 2, "is not a URL", "http://"),
    ],
)
def test_a_bad_catalog_is_refused_with_file_line_and_remedy(
    tmp_path: Path, text: str, line: int, message: str, remedy: str
) -> None:
    path = tmp_path / "lab.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_splits(path)
    assert str(caught.value).startswith(f"catalog {path}:{line}")
    assert message in str(caught.value)
    assert remedy in caught.value.remedy


def test_a_catalog_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read: No such file") as caught:
        load_splits(tmp_path / "none.toml")
    assert "PRISMCACHE_CATALOG" in caught.value.remedy
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"bytes\.toml is not TOML"):
        load_splits(tmp_path / "bytes.toml")
