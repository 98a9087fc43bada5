"""`ensure --context`, `ensure --product` and `facts`, as they are typed, on a real bucket."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
from typer.testing import CliRunner

from prismcache.cli.app import app
from tests.support.crops import CropSpec, write_crop
from tests.support.s3 import S3Server

SHAPES: dict[str, Any] = {"raw_shape": (24, 70, 72), "labels_shape": (14, 40, 44), "channels": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("cli")
    for split in ("instance", "semantic"):
        write_crop(folder / "s3", CropSpec(split, 0, **SHAPES))
    with S3Server(folder / "s3") as server:
        variables = {"PRISMCACHE_ROOT": str(folder / "root"), "PRISMCACHE_S3_ENDPOINT_URL": server.endpoint}
        yield lambda *words: CliRunner().invoke(app, list(words), env=variables)


def path_of(result: Any) -> Path:
    assert result.exit_code == 0, result.stderr
    return Path(result.stdout.strip())


def test_context_is_taken_as_numbers_or_all(run: Callable[..., Any]) -> None:
    small = path_of(run("ensure", "instance", "0", "--context", "2,4,4"))
    assert small.name == "crop_0.ctx2-4-4.h5"
    with h5py.File(small) as file:
        assert file["raw/ch_00"].shape == (18, 48, 52)
        assert file["labels"].shape == (14, 40, 44)
    with h5py.File(path_of(run("ensure", "instance", "0", "--context", "all"))) as file:
        assert file["raw/ch_00"].shape == (24, 70, 72)
    refused = run("ensure", "instance", "0", "--context", "some", "--json")
    assert refused.exit_code == 2
    assert json.loads(refused.stdout)["error"]["code"] == "invalid_request"


def test_products_are_files_of_their_own(run: Callable[..., Any]) -> None:
    with h5py.File(path_of(run("ensure", "instance", "0", "--product", "unlabelled"))) as file:
        assert file["unlabelled"].shape == (14, 40, 44)
    for words in (("instance", "0", "--product", "fgbg"), ("instance", "0", "--product", "lunch")):
        refused = run("ensure", *words)
        assert (refused.exit_code, refused.stdout) == (2, "")


def test_facts_are_a_table_json_or_a_row_for_each_neuron(run: Callable[..., Any]) -> None:
    document = json.loads(run("facts", "instance", "0", "--json").stdout)["facts"][0]
    lines = run("facts", "instance", "0").stdout.splitlines()
    assert lines[1].split()[:2] == ["instance/0", str(document["labels"])]
    assert [line.split()[0] for line in lines[4:]] == ["0", "1"]
    rows = list(csv.DictReader(io.StringIO(run("facts", "instance", "0", "--csv").stdout)))
    assert len(rows) == document["labels"] > 1
    assert rows[0]["split"] == "instance"
    assert {"crop", "label", "id", "voxels", "z_start", "x_stop", "centroid_z_nm", "ch_00", "ch_01"} <= rows[0].keys()
    assert sum(int(row["voxels"]) for row in rows) == round(document["foreground"] * 14 * 40 * 44)
    assert "class " in run("facts", "semantic", "0").stdout
