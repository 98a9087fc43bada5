"""`prismcache adopt`: a right file of another cache is taken over, and no other file is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
from typer.testing import CliRunner

from prismcache import PrismClient
from prismcache.cli.app import app
from tests.support.cache_root import tiny_spec
from tests.support.crops import BUCKET, crop_folder, write_crop
from tests.support.s3 import S3Server

AWAY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def bucket_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("s3")
    write_crop(folder, tiny_spec(0))
    return folder


@pytest.fixture(scope="module")
def server(bucket_dir: Path):
    with S3Server(bucket_dir) as running:
        yield running


@pytest.fixture(scope="module")
def made(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A full file and one of channel 0, in another cache folder."""
    with PrismClient(tmp_path_factory.mktemp("colleague"), s3_endpoint_url=server.endpoint) as client:
        part = client.ensure("instance", 0, channels=0)[0]
        return client.ensure("instance", 0)[0], part


@pytest.fixture
def copied(made: tuple[str, str], tmp_path: Path) -> Path:
    return Path(shutil.copy(made[0], tmp_path / "crop_0.h5"))


@pytest.fixture
def adopt(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("PRISMCACHE_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("PRISMCACHE_S3_ENDPOINT_URL", server.endpoint)
    return lambda *words: CliRunner().invoke(app, ["adopt", *(str(word) for word in words)])


def test_a_right_file_is_a_hit_afterwards_with_the_same_content(adopt, made, tmp_path: Path) -> None:
    with h5py.File(made[0]) as file:
        assert len(file["raw"]) > 1
    adopted = adopt(made[0])
    assert (adopted.exit_code, adopted.stderr) == (0, "")
    assert adopted.stdout == f"{tmp_path}/root/instance/crop_0.h5\n"
    assert Path(adopted.stdout.strip()).read_bytes() == Path(made[0]).read_bytes()
    with PrismClient(tmp_path / "root", s3_endpoint_url=AWAY) as client:
        assert client.ensure("instance", 0, channels=0, timeout=20) == [adopted.stdout.strip()]
        assert [result.verdict.value for result in client.verify()] == ["ok"]


def test_a_file_with_some_channels_stays_one_and_a_file_in_its_place_is_adopted_there(
    adopt, made, tmp_path: Path
) -> None:
    place = tmp_path / "root/instance" / Path(made[1]).name
    place.parent.mkdir(parents=True)
    shutil.copy(made[1], place)
    assert adopt(place).stdout == f"{place}\n"
    with PrismClient(tmp_path / "root", s3_endpoint_url=AWAY) as client:
        assert client.ensure("instance", 0, channels=0, timeout=20) == [str(place)]


def flip_a_voxel_of_the_file(path: Path) -> None:
    with h5py.File(path) as file:
        chunk = file["raw/ch_00"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset + chunk.size // 2] ^= 1
    path.write_bytes(data)


def claim_another_source(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["source_fingerprint"] = "0" * 64


def forget_the_crop(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file.attrs["split"]


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (flip_a_voxel_of_the_file, "crop_corrupt"),
        (claim_another_source, "crop_corrupt"),
        (forget_the_crop, "invalid_request"),
        (lambda path: path.write_bytes(b"no HDF5"), "crop_corrupt"),
        (lambda path: path.unlink(), "invalid_request"),
    ],
    ids=["flipped", "another version", "foreign", "no HDF5", "absent"],
)
def test_a_file_that_is_not_right_is_refused_and_nothing_is_left(adopt, copied: Path, tmp_path, spoil, code) -> None:
    spoil(copied)
    refused = adopt(copied)
    assert refused.exit_code != 0
    assert refused.stdout == ""
    assert refused.stderr.startswith(f"error[{code}]: ")
    assert list((tmp_path / "root").rglob("*.h5*")) == []


def test_a_crop_that_the_bucket_has_changed_since_is_refused(adopt, made, bucket_dir: Path, server: S3Server) -> None:
    chunk = next(path for path in crop_folder(bucket_dir, tiny_spec(0)).rglob("raw/0.*"))
    before = chunk.read_bytes()
    chunk.write_bytes(before + b"more")
    try:
        assert "was made from another version of instance/crop_0.zarr" in adopt(made[0]).stderr
    finally:
        chunk.write_bytes(before)
    assert BUCKET in str(chunk)


def test_without_a_network_the_bucket_is_not_compared_and_a_warning_says_so(
    adopt, made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PRISMCACHE_S3_ENDPOINT_URL", AWAY)
    monkeypatch.setenv("PRISMCACHE_S3_OBJECT_TIMEOUT", "0.1")
    assert adopt(made[0]).stdout == f"{tmp_path}/root/instance/crop_0.h5\n"
    assert "instance/crop_0.zarr was not compared with the bucket" in caplog.text
