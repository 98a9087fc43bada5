"""Synapse crops, and splits of a lab's own catalog: bucket, service or embedded pipeline, client, voxels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from click.testing import Result
from typer.testing import CliRunner

from prismcache import (
    Crop,
    PrismClient,
    RequestError,
    SourceUnreachableError,
    SplitConflictError,
    UnknownSplitError,
)
from prismcache.cli.app import app
from prismcache.config import Settings
from tests.support import own_splits
from tests.support.cache_root import Lab, tiny_spec
from tests.support.crops import BUCKET
from tests.support.labs import running_lab
from tests.support.service import Service, service_config

SYNAPSES = own_splits.synapse_arrays()
MITO = own_splits.lab_arrays()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("own")
    with running_lab(folder, [tiny_spec(0), tiny_spec(2), tiny_spec(0, "semantic")], bucket_changes=True) as lab:
        own_splits.write_synapses(lab.bucket_dir, SYNAPSES)
        own_splits.write_lab_crop(lab.bucket_dir, MITO)
        yield lab


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("catalog") / "lab.toml"
    path.write_text(own_splits.LAB_CATALOG)
    return path


@pytest.fixture(scope="module")
def service(lab: Lab, catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    config = service_config(lab.settings(catalog=catalog), tmp_path_factory.mktemp("state"))
    with Service(config) as running:
        yield running


@pytest.fixture(params=["service", "embedded"])
def client(request: pytest.FixtureRequest, lab: Lab, catalog: Path, tmp_path: Path) -> Iterator[PrismClient]:
    """A client of the service, which has no catalog of its own, or an embedded one in a folder of its own."""
    if request.param == "service":
        url = request.getfixturevalue("service").url
        settings = Settings.load({}, url=url, root=lab.root, downloads=tmp_path / "downloads")
    else:
        settings = lab.settings(catalog=catalog, root=tmp_path / "root")
    with PrismClient(settings=settings) as client:
        yield client


@pytest.fixture
def command(lab: Lab, catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `prismcache` with these words, embedded, on a folder of its own."""
    values = {"CATALOG": catalog, "S3_ENDPOINT_URL": lab.proxy.endpoint, "ROOT": tmp_path / "ours"}
    for name, value in values.items():
        monkeypatch.setenv(f"PRISMCACHE_{name}", str(value))
    return lambda *words: CliRunner().invoke(app, words)


def test_a_synapse_crop_has_raw_and_the_other_arrays_as_published(client: PrismClient) -> None:
    (path,) = client.ensure("synapses", 0, progress=False)
    raw, _ = SYNAPSES["ls_2channels_globalnorm"]
    with h5py.File(path) as file:
        assert set(file) == {"raw", *SYNAPSES} - {"ls_2channels_globalnorm"}
        assert (file.attrs["split"], file.attrs["num_channels"]) == ("synapses", 2)
        for channel, expected in enumerate(raw):
            np.testing.assert_array_equal(file[f"raw/ch_{channel:02d}"][()], expected)
        for name in file.keys() - {"raw"}:
            voxels, start = SYNAPSES[name]
            assert file[name].dtype == voxels.dtype
            np.testing.assert_array_equal(file[name][()], voxels)
            assert list(file[name].attrs["offset"]) == own_splits.world(start)
    with Crop(path) as crop:
        assert (crop.shape, crop.offset, crop.has_labels) == (raw.shape[1:], own_splits.RAW_OFFSET, False)
        assert crop.arrays == ("psd95_output", "psd95_mask", "psd95_weights", "psd95_underseg")
        assert crop.array_start("psd95_underseg") == (8, 12, 14)
        np.testing.assert_array_equal(crop.read(channels=1)[0], raw[1])
        with pytest.raises(RequestError, match="has no labels"):
            _ = crop.labels
        with pytest.raises(RequestError, match="has no labels"):
            crop.show(labels=True)
        with pytest.raises(RequestError, match="split 'synapses' has no product 'facts'"):
            crop.neurons()
        assert np.asarray(crop.show(z=3)).shape == (70, 66, 3)
        image = zarr.open_group(crop.zarr_store(), mode="r")
        assert set(image) == {"0", *crop.arrays}
        np.testing.assert_array_equal(image["0"][:], raw)
        np.testing.assert_array_equal(image["all_channels/0"][:], raw)
        np.testing.assert_array_equal(image["psd95_weights/0"][:], SYNAPSES["psd95_weights"][0])
    assert client.ensure("synapses", 0, context="all", progress=False) == [path]  # which has all of raw already
    assert [result.verdict.value for result in client.verify("synapses")] == ["ok"]


def test_a_synapse_crop_is_described_with_its_arrays(client: PrismClient) -> None:
    info = client.describe("synapses", 0)
    assert (info.raw_shape, info.labels_shape, info.has_labels) == ((2, 32, 70, 66), None, False)
    assert (info.products, client.describe("mito", 0).products) == ((), ("unlabelled", "facts"))
    assert [(each.name, each.dtype) for each in info.arrays][:2] == [
        ("psd95_output", "uint64"),
        ("psd95_mask", "uint8"),
    ]
    assert info.arrays[3].offset == tuple(own_splits.world((8, 12, 14)))
    assert [(each.name, each.dtype) for each in client.describe("mito", 0).arrays] == [("mask", "uint8")]
    with pytest.raises(RequestError, match="split 'synapses' has no product 'unlabelled'") as caught:
        client.ensure("synapses", 0, product="unlabelled", progress=False)
    assert caught.value.remedy.startswith("Ask for product crop. A crop's file has the arrays psd95_output, psd95_mask")


def test_a_channel_of_a_synapse_crop_comes_with_the_arrays(client: PrismClient) -> None:
    (path,) = client.ensure("synapses", 0, channels=1, progress=False)
    with Crop(path) as crop:
        assert 1 in crop.channels
        np.testing.assert_array_equal(crop.array("psd95_weights")[()], SYNAPSES["psd95_weights"][0])


def test_a_labs_own_split_comes_from_its_own_bucket(client: PrismClient) -> None:
    (path,) = client.ensure("mito", 0, progress=False)
    with Crop(path) as crop:
        np.testing.assert_array_equal(crop.raw[...], MITO["image"])
        np.testing.assert_array_equal(crop.original_labels[...], MITO["mito"].astype(np.uint64))
        np.testing.assert_array_equal(crop.array("mask")[()], MITO["mask"].astype(np.uint8))
        assert (crop.offset, crop.voxel_size) == ((800, 336, 168), (400, 168, 168))
        assert crop.entry.expansion == 4
        assert "≈ 100 × 42 × 42 nm in tissue" in repr(crop)
        assert crop.provenance.source == "s3://lab-data/training/mito/crop_0.zarr"
    (unlabelled,) = client.ensure("mito", 0, product="unlabelled", progress=False)
    with h5py.File(unlabelled) as file:
        np.testing.assert_array_equal(file["unlabelled"][()], MITO["mito"] > 0)
    (facts,) = client.ensure("mito", 0, product="facts", progress=False)
    assert json.loads(Path(facts).read_text())["classes"].keys() == {"0", "3", "7", str(2**40)}
    with pytest.raises(RequestError, match="split 'mito' has no product 'avg_barcodes'"):
        client.ensure("mito", 0, product="avg_barcodes", progress=False)


def test_the_catalog_lists_all_splits_and_what_shows_the_same_tissue(client: PrismClient) -> None:
    found = {f"{info.split}/{info.crop}": info for info in client.catalog()}
    assert list(found) == ["instance/0", "instance/2", "mito/0", "semantic/0", "synapses/0"]
    tissues = {name: info.same_tissue for name, info in found.items() if info.same_tissue}
    assert tissues == {
        "instance/0": ("mito/0",), "mito/0": ("instance/0",),
        "instance/2": ("semantic/0",), "semantic/0": ("instance/2",),
    }  # fmt: skip
    assert (found["mito/0"].expansion, found["semantic/0"].expansion) == (4, 5)


def test_a_split_that_the_catalog_lacks_is_refused_with_those_it_has(client: PrismClient) -> None:
    for ask in (client.ensure, client.describe, client.verify, client.remove):
        with pytest.raises(UnknownSplitError, match=r"'nuclei' is not a split; the splits are .*'synapses', 'mito'"):
            ask("nuclei", 0)


def test_the_openapi_document_names_the_catalogs_splits(service: Service) -> None:
    with service.client() as http:
        document = http.get("/openapi.json").json()
        assert document["components"]["schemas"]["Split"]["enum"] == ["instance", "semantic", "synapses", "mito"]
        for url in ("/v1/crops/nuclei/0", "/v1/crops/nuclei/0/preview.png?channel=0", "/v1/jobs?split=nuclei"):
            assert http.get(url).json()["code"] == "unknown_split"
        leased = http.post("/v1/leases", json={"split": "nuclei", "crops": [0]})
        assert leased.json()["code"] == "unknown_split"


def test_a_client_older_than_the_catalog_lists_the_splits_that_it_knows(service: Service, lab: Lab) -> None:
    with PrismClient(settings=Settings.load({}, url=service.url, root=lab.root)) as client:
        client.ensure("synapses", 0, progress=False)
    with service.client() as http:
        for method, path, of in (("GET", "crops", "crops"), ("GET", "jobs", "jobs"), ("POST", "verify", "results")):
            body = {} if method == "POST" else None
            old = http.request(method, f"/v1/{path}", json=body, headers={"User-Agent": "prismcache"}).json()
            new = http.request(method, f"/v1/{path}", json=body).json()
            assert {each["split"] for each in old[of]} <= {"instance", "semantic"}
            assert "synapses" in {each["split"] for each in new[of]}


def test_a_synapse_crop_is_a_zarr_hierarchy_without_labels(service: Service, lab: Lab) -> None:
    with PrismClient(settings=Settings.load({}, url=service.url, root=lab.root)) as client, service.client() as http:
        (path,) = client.ensure("synapses", 0, progress=False)
        with Crop(path) as crop:
            image = zarr.open_group(crop.zarr_store(), mode="r")
            np.testing.assert_array_equal(image["0"][:], SYNAPSES["ls_2channels_globalnorm"][0])
            np.testing.assert_array_equal(image["all_channels/0"][:], SYNAPSES["ls_2channels_globalnorm"][0])
            for name in crop.arrays:
                voxels, start = SYNAPSES[name]
                np.testing.assert_array_equal(image[name]["0"][:], voxels)
                (scale,) = image[name].attrs["multiscales"][0]["datasets"]
                assert scale["coordinateTransformations"][1]["translation"] == own_splits.world(start)
            assert "labels" not in image
        url = "/v1/crops/synapses/0/zarr"
        assert http.get(f"{url}/psd95_mask/0/.zarray").json()["dtype"] == "|u1"
        assert [http.get(f"{url}/{key}").status_code for key in ("labels/.zgroup", "original_ids/.zgroup")] == [
            404,
            404,
        ]


def test_a_preview_of_a_crop_without_labels_is_raw_alone(service: Service, lab: Lab) -> None:
    with PrismClient(settings=Settings.load({}, url=service.url, root=lab.root)) as client, service.client() as http:
        client.ensure("synapses", 0, progress=False)
        response = http.get("/v1/crops/synapses/0/preview.png?channel=1")
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png")


def test_the_command_line_shows_splits_arrays_and_tissue(command: Callable[..., Result]) -> None:
    def run(*words: str) -> str:
        result = command(*words)
        assert result.exit_code == 0, result.output
        return str(result.output)

    listed = run("ls")
    assert "synapses/0" in listed
    assert "instance/2 and semantic/0 show the same tissue" in listed
    shown = run("info", "mito", "0")
    assert "400 × 168 × 168 nm expanded, ≈ 100 × 42 × 42 nm in tissue" in shown
    assert "same tissue     instance/0" in shown
    assert "psd95_underseg (10, 20, 20) uint16" in run("info", "synapses", "0")


@pytest.mark.parametrize(("split", "array"), [("synapses", "psd95_mask"), ("mito", "mask")])
def test_a_file_of_another_cache_is_taken_over(
    lab: Lab, catalog: Path, tmp_path: Path, command: Callable[..., Result], split: str, array: str
) -> None:
    with PrismClient(settings=lab.settings(catalog=catalog, root=tmp_path / "theirs")) as client:
        (path,) = client.ensure(split, 0, progress=False)
    adopted = command("adopt", path)
    assert (adopted.stdout, adopted.stderr) == (f"{tmp_path}/ours/{split}/crop_0.h5\n", "")
    settings = lab.settings(catalog=catalog, root=tmp_path / "ours", s3_endpoint_url="http://127.0.0.1:9")
    with PrismClient(settings=settings) as client:
        assert client.ensure(split, 0, progress=False, timeout=20) == [adopted.stdout.strip()]
        assert [result.verdict.value for result in client.verify()] == ["ok"]
    with h5py.File(path) as file:
        chunk = file[array].id.get_chunk_info(0)
    damaged = bytearray(Path(path).read_bytes())
    damaged[chunk.byte_offset + chunk.size // 2] ^= 1
    Path(path).write_bytes(damaged)
    assert command("adopt", path).stderr.startswith("error[crop_corrupt]")


def test_a_file_of_a_split_that_the_catalog_describes_otherwise_is_not_taken_over(
    lab: Lab, catalog: Path, tmp_path: Path, command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    with PrismClient(settings=lab.settings(catalog=catalog, root=tmp_path / "theirs")) as client:
        (path,) = client.ensure("mito", 0, progress=False)
    other = tmp_path / "other.toml"
    other.write_text(own_splits.LAB_CATALOG.replace("volumes/image", "volumes/raw"))
    monkeypatch.setenv("PRISMCACHE_CATALOG", str(other))
    assert command("adopt", path).stderr.startswith("error[split_conflict]")
    monkeypatch.delenv("PRISMCACHE_CATALOG")
    assert command("adopt", path).stderr.startswith("error[unknown_split]: 'mito' is not a split")


@pytest.mark.parametrize(
    ("split", "layout", "names"),
    [
        ("synapses", "ngff", ["0", "psd95_mask", "psd95_output", "psd95_underseg", "psd95_weights"]),
        ("synapses", "e11", ["volumes"]),
        ("mito", "ngff", ["0", "labels", "labels_ids", "mask"]),
        ("mito", "e11", ["labels", "labels_ids", "mask", "raw", "unlabelled"]),
    ],
)
def test_the_export_has_all_arrays_of_a_crop(
    tmp_path: Path, command: Callable[..., Result], split: str, layout: str, names: list[str]
) -> None:
    done = command("export", split, "0", str(tmp_path / "a.zarr"), "--layout", layout, "--context", "all")
    assert done.exit_code == 0, done.stderr
    group = zarr.open_group(tmp_path / "a.zarr", mode="r", zarr_format=2)
    assert sorted(group) == names
    if split == "mito":
        assert group["mask" if layout == "e11" else "mask/0"].attrs["offset"] == [800, 336, 168]
        return
    for name, (voxels, start) in SYNAPSES.items():
        flat = "0" if name.startswith("ls_") else f"{name}/0"
        array = group[f"volumes/{name}" if layout == "e11" else flat]
        assert (array.attrs["offset"], array.dtype) == (own_splits.world(start), voxels.dtype)
        np.testing.assert_array_equal(array[:], voxels)
    words = ["export", "synapses", "0", str(tmp_path / "b.zarr"), "--layout", layout, "--arrays", "raw,psd95_mask"]
    assert command(*words).exit_code == 0
    assert "psd95_output" not in {path.name for path in (tmp_path / "b.zarr").rglob("*")}
    for options, message in {
        ("--arrays", "raw,labels"): "there is no array labels to export; there are raw, psd95_output",
        ("--arrays", "raw,avg_barcodes"): "split 'synapses' has no product 'avg_barcodes'",
        ("--label-values", "original"): "has no labels: crops of 'synapses' have none",
        ("--label-dtype", "uint8"): "has no labels: crops of 'synapses' have none",
    }.items():
        refused = command("export", "synapses", "0", str(tmp_path / "c.zarr"), *options)
        assert message in " ".join(refused.stderr.split())
    assert not (tmp_path / "c.zarr").exists()


def test_an_array_that_a_crop_lacks_is_a_note_not_a_failure(lab: Lab, tmp_path: Path) -> None:
    kept = {name: array for name, array in SYNAPSES.items() if name != "psd95_weights"}
    own_splits.write_synapses(lab.bucket_dir, kept, crop=1)
    try:
        with (
            PrismClient(settings=lab.settings(root=tmp_path)) as client,
            pytest.warns(UserWarning, match="lacks volumes/psd95_weights"),
        ):
            (file,) = client.ensure_files("synapses", 1, progress=False)
        assert "psd95_weights" not in Crop(file.path).arrays
    finally:
        shutil.rmtree(lab.bucket_dir / BUCKET / "ls/models/training_data/synapses/excitatory/crop_1.zarr")


def test_a_place_that_cannot_be_read_hides_only_its_own_splits(
    lab: Lab, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    catalog = tmp_path / "lab.toml"
    catalog.write_text(own_splits.LAB_CATALOG + 'endpoint_url = "http://127.0.0.1:9"\n')
    with PrismClient(settings=lab.settings(catalog=catalog, root=tmp_path / "root", s3_object_timeout=3)) as client:
        with caplog.at_level("WARNING", "prismcache"):
            assert [f"{info.split}/{info.crop}" for info in client.catalog()][:2] == ["instance/0", "instance/2"]
        [warning] = [text for text in caplog.messages if "cannot be read" in text]  # signs of life may be there, too
        assert warning.startswith("some splits are not listed, since their place cannot be read")
        with pytest.raises(SourceUnreachableError, match=r"127\.0\.0\.1:9"):
            client.ensure("mito", 0, progress=False)
        assert client.ensure("instance", 0, progress=False)


def test_files_of_a_split_that_was_dropped_from_the_catalog_count_and_are_evicted(
    lab: Lab, catalog: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    with PrismClient(settings=lab.settings(root=root, catalog=catalog)) as client:
        (file,) = client.ensure_files("mito", 0, progress=False)
    # Room is reserved for 4.28 MB, more than instance crop 0 can take: with the other file there, it is too much.
    config = service_config(lab.settings(root=root), tmp_path / "state", max_bytes=4_300_000, min_free_bytes=0)
    with Service(config) as service, PrismClient(settings=Settings.load({}, url=service.url, root=root)) as client:
        with service.client() as http:
            assert http.get("/v1/status").json()["usage"]["used_bytes"] == file.size > 25_000
        client.ensure("instance", 0, progress=False)
    assert not Path(file.path).exists()


def test_two_catalogs_that_give_one_name_to_other_crops_do_not_mix_files(
    lab: Lab, catalog: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.toml"
    other.write_text(own_splits.LAB_CATALOG.replace('folder = "mito"', 'folder = "mito-2026"'))
    own_splits.write_lab_crop(lab.bucket_dir, own_splits.lab_arrays(1), crop=1, folder="mito-2026")
    root = tmp_path / "root"
    with PrismClient(settings=lab.settings(catalog=catalog, root=root)) as ours:
        ours.ensure("mito", 0, progress=False)
    with PrismClient(settings=lab.settings(catalog=other, root=root)) as theirs:
        for crop in (0, 1):
            with pytest.raises(SplitConflictError, match="is that of another catalog") as caught:
                theirs.ensure("mito", crop, progress=False)
            assert "Rename the split" in caught.value.remedy
        assert [info.files for info in theirs.catalog("mito")] == [()]
        assert theirs.ensure("instance", 0, progress=False)
    assert sorted(path.name for path in (root / "mito").glob("*.h5")) == ["crop_0.h5"]
