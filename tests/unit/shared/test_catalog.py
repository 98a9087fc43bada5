"""Catalog files: the published splits, a lab's own, and files that cannot be used."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
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
        (b"[splits.a]\nraw = \n", 2, "is not TOML", "toml.io"),
        (b"[splits.a]\nraw = 'x'\nraw = 'y'\n", 3, "is not TOML: Cannot overwrite", "toml.io"),
        (b"[splits.a]\n[splits.b]\n[splits.a]\n", 3, "is not TOML: Cannot declare", "toml.io"),
        (b"[splits.a]\n\n# caf\xe9\n", 3, "is not UTF-8", "Save the file as UTF-8"),
        (b"\xff\xfe[\x00s\x00", 1, "is not UTF-8", "Save the file as UTF-8"),
        (b"x = " + b"[" * 20_000, 1, "is not TOML: maximum recursion depth", "toml.io"),
        (b"", 1, "'splits' has no table", "[splits.NAME]"),
        (b"\nsplits = 3\n", 2, "'splits' has no table", "[splits.NAME]"),
        (b"# split = 2\nsplit = 1\n", 2, "'split' is not a key of a catalog", "[splits.NAME]"),
        (b"splits.a = 1\n", 1, "'a' is not a table", "[splits.a]"),
        (b"\n[splits.Mito]\n", 2, "is not a name for a split", "small letters"),
        (b"[splits.semantic]\n", 1, "is the name of a published split", "another name"),
        (
            b"[splits.a]\nraw = 'x'\nchanels = 2\n",
            3,
            "'chanels' is not a key of a split",
            "The keys are anonymous, arrays",
        ),
        (b"[splits.a]\nraw = 'x'\n[splits.b]\nraw = 3\n", 4, "3 is not text", "in quotes"),
        (b"[splits]\na = {raw = 'x'}\nb = {raw = 3}\n", 3, "3 is not text", "in quotes"),
        (b"[splits.a]\ntitle = 'x\\u0000'\nraw = \"\\u0000\"\n", 3, "is not text", "in quotes"),
        (b"[splits.a]\nraw = '../x'\n", 2, "is not a folder", "training/mito"),
        (b"[splits.a]\nfolder = './x'\n", 2, "is not a folder", "training/mito"),
        (b"[splits.a]\nraw = ''\n", 2, "is not an array", "volumes/raw"),
        (b"[splits.a]\narrays = 'x'\n", 2, "'x' is not a list", "volumes/mask"),
        (b"[splits.a]\narrays = ['.zattrs']\n", 2, "is not a folder", "training/mito"),
        (b"[splits.a]\nraw = 'labels'\n", 1, "'labels' has two roles", "once"),
        (b"[splits.a]\narrays = ['x/m', 'y/m']\n", 2, "'m' would name two datasets", "must differ"),
        (b"[splits.a]\narrays = ['x/raw']\n", 2, "'raw' would name two datasets", "must differ"),
        (b"[splits.a]\narrays = ['x/0']\n", 2, "'0' would name two datasets", "must differ"),
        (b"[splits.a]\nclasses = 'yes'\n", 2, "neither true nor false", "without quotes"),
        (b"[splits.a]\nproducts = ['synapses']\n", 2, "is not a list of products", "unlabelled"),
        (b"[splits.a]\nproducts = ['fgbg']\n", 2, "'fgbg' needs labels that are classes", "classes = true"),
        (b"[splits.a]\nlabels = ''\nproducts = ['facts']\n", 3, "'products' needs labels", "Name `labels`"),
        (b"[splits.a]\nexpansion = 0\n", 2, "0 is not a number from 0.01 to 1000", "4.8"),
        (b"[splits.a]\nexpansion = nan\n", 2, "nan is not a number", "4.8"),
        (b"[splits.a]\nexpansion = 0x" + b"f" * 9_000 + b"\n", 2, "this number is not a number from", "4.8"),
        (b"[splits.a]\nexpansion = '" + b"5" * 9_000 + b"'\n", 2, "5… is not a number from", "4.8"),
        (b"[splits.a]\nexpansion = true\n", 2, "True is not a number", "4.8"),
        (b"[splits.a]\nresolution = [400, 168]\n", 2, "is not a list of three numbers", "[400, 168, 168]"),
        (b"[splits.a]\nresolution = [400, 1e-9, 168]\n", 2, "1e-09 is not a number from 0.5", "4.8"),
        (b"[splits.a]\noffset = ['0', 0, 0]\n", 2, "'0' is not a number", "4.8"),
        (b"[splits.a]\noffset = [inf, 0, 0]\n", 2, "inf is not a number", "4.8"),
        (b"[splits.a]\nsame_tissue = { x = 'instance/2' }\n", 2, "does not name two crops", "instance/2"),
        (b"[splits.a]\nsame_tissue = { 0 = 'instance 2' }\n", 2, "does not name two crops", "instance/2"),
        (
            b"[splits.a]\nsame_tissue.1" + b"0" * 9_000 + b" = 'instance/2'\n",
            2,
            "does not name two crops",
            "instance/2",
        ),
        (b"[splits.a.same_tissue]\n0 = 'instence/2'\n", 1, "'instence' is not a split", "The splits are a, instance"),
        (b"[splits.a]\nbucket = 's3://x/y'\n", 2, "is not a bucket", "without s3://"),
        (b"[splits.a]\nendpoint_url = 'lab:9000'\n", 2, "is not a URL", "https://"),
        (b"[splits.a]\nendpoint_url = 'http://lab:port'\n", 2, "is not a URL", "https://"),
        (b"[splits.a]\nregion = 'us east'\n", 2, "is not a region", "us-east-1"),
    ],
    ids=itertools.count(1),
)
def test_a_bad_catalog_is_refused_with_file_line_and_remedy(
    tmp_path: Path, text: bytes, line: int, message: str, remedy: str
) -> None:
    path = tmp_path / "lab.toml"
    path.write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        load_splits(path)
    assert str(caught.value).startswith(f"catalog {path}:{line}: ")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "it is not a file"),
        (os.mkfifo, "it is not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "it is not a file"),
        (lambda path: path.write_bytes(b"#" * (1 << 20) + b"\n"), "more than 1048576 bytes"),
    ],
    ids=["absent", "folder", "pipe", "device", "long"],
)
def test_a_catalog_that_cannot_be_read_is_refused(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "lab.toml"
    make(path)
    with pytest.raises(ConfigError, match=rf"lab\.toml cannot be read: .*{message}") as caught:
        load_splits(path)
    assert "PRISMCACHE_CATALOG" in caught.value.remedy


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    path.write_bytes(b"\xef\xbb\xbf[splits.a]\n")
    assert "a" in load_splits(path)


def test_tissue_is_the_same_over_any_chain_of_crops(tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    tissues = {"a": "{ 0 = 'b/1' }", "b": "{ 1 = 'c/2', 5 = 'c/6' }", "c": "{ 2 = 'semantic/0' }"}
    path.write_text("".join(f"[splits.{name}]\nsame_tissue = {pairs}\n" for name, pairs in tissues.items()))
    splits = load_splits(path)
    assert splits.same_tissue("instance", 2) == ("a/0", "b/1", "c/2", "semantic/0")
    assert splits.same_tissue("b", 1) == ("a/0", "c/2", "instance/2", "semantic/0")
    assert splits.same_tissue("c", 6) == ("b/5",)
