"""`prismcache.torch_em` stands in for torch_em's own loaders: the same batches, from the cache or a service."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torch_em.data.datasets.light_microscopy import e11bio as original

from prismcache import (
    ClassNumbersWarning,
    Crop,
    CropNotCachedError,
    PrismClient,
    RequestError,
    Settings,
    UnknownChannelError,
    torch_em,
)
from prismcache.torch import PrismDataset
from tests.support.bucket import make_bucket
from tests.support.crops import CropSpec, crop_folder, small_spec
from tests.support.oracle import reference_crop
from tests.support.s3 import S3Server
from tests.support.service import Service, service_config

pytestmark = pytest.mark.torch

PATCH = (8, 32, 32)
OFFSETS = [[-1, 0, 0], [0, -1, 0], [0, 0, -1], [0, -3, 0]]
SEMANTIC = {"split": "semantic", "crop_ids": [0]}

Pairs = list[tuple[torch.Tensor, torch.Tensor]]


def semantic_spec(crop: int) -> CropSpec:
    """So small that no crop has all classes: 1, 2, 5, 6, 7, 10, 11 occur in crop 0, and 2, 3, 5, 7, 10 in crop 1."""
    return small_spec("semantic", crop, labels_shape=(10, 36, 36), raw_shape=(18, 44, 44), seed=crop)


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    specs = [*(small_spec(crop=crop) for crop in (0, 5)), *map(semantic_spec, (0, 1))]
    with S3Server(make_bucket(tmp_path_factory.mktemp("s3"), specs), dir_cache_seconds=86_400) as server:
        yield server


@pytest.fixture(scope="module")
def cache(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with instance crops 0 and 5, and semantic crops 0 and 1."""
    root = tmp_path_factory.mktemp("cache")
    with PrismClient(root, s3_endpoint_url=s3_server.endpoint) as client:
        client.ensure("instance", [0, 5], progress=False)
        client.ensure("semantic", [0, 1], progress=False)
    return root


@pytest.fixture(scope="module")
def service(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    settings = Settings(root=folder / "root", s3_endpoint_url=s3_server.endpoint)
    with Service(service_config(settings, folder / "state")) as running:
        yield running


def batches(get_loader: Callable[..., Any], path: Path, **arguments: Any) -> Pairs:
    """All batches of a loader, all random numbers drawn from the same seeds."""
    np.random.seed(7)  # noqa: NPY002 - what torch_em draws its patches with
    torch.manual_seed(7)
    return list(get_loader(path, PATCH, 2, pin_memory=False, **({"n_samples": 4} | arguments)))


def assert_same(found: Pairs, expected: Pairs) -> None:
    assert len(found) == len(expected) > 0
    for pair, other in zip(found, expected, strict=True):
        for tensor, wanted in zip(pair, other, strict=True):
            assert tensor.dtype == wanted.dtype
            assert torch.equal(tensor, wanted)


@pytest.mark.parametrize("name", ["get_e11bio_data", "get_e11bio_paths", "get_e11bio_dataset", "get_e11bio_loader"])
def test_the_signatures_are_the_originals_and_label_values(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (torch_em, original))
    common = [(p.name, p.kind, p.default) for p in ours.values() if p.name != "label_values"]
    assert common == [(p.name, p.kind, p.default) for p in theirs.values()]
    added = ours.keys() - theirs.keys()
    assert added == (set() if name in {"get_e11bio_data", "get_e11bio_paths"} else {"label_values"})
    assert all(ours[new].kind is inspect.Parameter.KEYWORD_ONLY for new in added)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"crop_ids": [0]}, id="plain"),
        pytest.param({"crop_ids": [0], "boundaries": True}, id="boundaries"),
        pytest.param({"crop_ids": [0], "offsets": OFFSETS}, id="offsets"),
        pytest.param(SEMANTIC | {"label_dtype": torch.int64}, id="semantic"),
        pytest.param({"crop_ids": [5, 0, 5], "channel": 7, "n_samples": 7, "shuffle": True}, id="several crops"),
    ],
)
def test_equal_seeds_give_equal_batches(cache: Path, arguments: dict[str, Any]) -> None:
    found = batches(torch_em.get_e11bio_loader, cache, **arguments)
    assert_same(found, batches(original.get_e11bio_loader, cache, **arguments))
    assert all(labels.unique().numel() > 1 for _, labels in found)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_equal_batches_from_worker_processes(cache: Path, start: str) -> None:
    arguments = {"crop_ids": [0, 5], "num_workers": 2, "multiprocessing_context": start}
    found = batches(torch_em.get_e11bio_loader, cache, **arguments)
    assert_same(found, batches(original.get_e11bio_loader, cache, **arguments))


def test_files_that_torch_em_made_itself_give_the_same_batches(
    cache: Path, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    # In a process of its own, since s3fs leaves its connections open.
    download = get_context("fork").Process(target=original.get_e11bio_data, args=(tmp_path, "semantic", [0], True))
    download.start()
    download.join()
    theirs = batches(original.get_e11bio_loader, tmp_path, **SEMANTIC)
    assert_same(batches(torch_em.get_e11bio_loader, cache, **SEMANTIC), theirs)


def test_several_datasets_of_a_crop_may_be_open_at_once(cache: Path) -> None:
    halves = [(slice(0, 9), slice(None), slice(None)), (slice(9, 18), slice(None), slice(None))]
    train, val = (torch_em.get_e11bio_dataset(cache, PATCH, crop_ids=[0], rois=[half]) for half in halves)
    assert train[0][0].shape == val[0][0].shape == (1, *PATCH)


@pytest.mark.parametrize("cache_mode", ["none", "ram"])
def test_torch_em_opens_a_crop_that_the_same_process_has_open(cache: Path, cache_mode: str) -> None:
    path = cache / "instance" / "crop_0.h5"
    with Crop(path) as crop:
        ours = PrismDataset(path, patch_shape=PATCH, cache=cache_mode)
        assert ours[0][0].shape == (1, *PATCH)
        assert len(batches(original.get_e11bio_loader, cache, crop_ids=[0])) > 0
        theirs = original.get_e11bio_dataset(cache, PATCH, crop_ids=[0])
        assert theirs[0][0].shape == crop.raw[0, :8, :32, :32][None].shape


def test_numbers_that_mean_different_classes_are_warned_of_in_the_callers_name(cache: Path) -> None:
    with pytest.warns(ClassNumbersWarning, match=r"label 1 is class 1 in crop_0.h5 and class 2 in crop_1.h5") as caught:
        torch_em.get_e11bio_dataset(cache, PATCH, "semantic", [0, 0, 1])
    assert caught[0].filename == __file__
    torch_em.get_e11bio_dataset(cache, PATCH, "semantic", [0, 0])
    torch_em.get_e11bio_dataset(cache, PATCH, "semantic", [0, 1], label_values="original")


def test_original_values_are_the_classes_of_the_source_for_the_sampler_too(cache: Path, s3_server: S3Server) -> None:
    seen: list[np.ndarray[Any, Any]] = []

    def sampler(raw: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> bool:
        seen.append(labels)
        return True

    dataset = torch_em.get_e11bio_dataset(
        cache, (10, 36, 36), "semantic", [0, 1], label_values="original", n_samples=2, sampler=sampler
    )
    for crop in (0, 1):
        expected = reference_crop(crop_folder(s3_server.folder, semantic_spec(crop))).source_labels
        labels = dataset[crop][1]
        assert np.array_equal(seen[crop], expected)
        assert seen[crop].dtype == np.uint32
        assert labels.unique().tolist() == np.unique(expected).tolist()  # after flips and turns


def test_original_values_come_before_the_users_own_transform_and_pickle(cache: Path) -> None:
    with h5py.File(cache / "semantic/crop_0.h5") as file:
        table = file["labels_ids"][()].astype(np.uint32)
    arguments = {"split": "semantic", "crop_ids": [0], "pre_label_transform": np.sqrt}
    dataset = torch_em.get_e11bio_dataset(cache, PATCH, label_values="original", **arguments)
    found = batches(lambda *_, **__: DataLoader(pickle.loads(pickle.dumps(dataset))), cache)
    arguments["pre_label_transform"] = lambda labels: np.sqrt(table[labels])
    expected = original.get_e11bio_dataset(cache, PATCH, **arguments)
    assert_same(found, batches(lambda *_, **__: DataLoader(expected), cache))


def test_ids_that_float32_would_merge_are_refused(cache: Path) -> None:
    with pytest.raises(RequestError, match="does not hold exactly"):
        torch_em.get_e11bio_dataset(cache, PATCH, crop_ids=[0], label_values="original")


def test_what_cannot_be_meant_is_refused_in_words(cache: Path) -> None:
    with pytest.raises(UnknownChannelError, match="has no channel 15; it has 0, 1"):
        torch_em.get_e11bio_dataset(cache, PATCH, crop_ids=[0, 5], channel=15)
    with pytest.raises(RequestError, match="patch_shape"):
        torch_em.get_e11bio_dataset(cache, (32, 32), crop_ids=[0])
    with pytest.raises(RequestError, match="label_values"):
        torch_em.get_e11bio_dataset(cache, PATCH, crop_ids=[0], label_values="old")


def test_a_missing_crop_is_a_runtime_error_unless_it_may_be_downloaded(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match=r"instance/5, instance/0") as caught:
        torch_em.get_e11bio_data(tmp_path, crop_ids=[5, 0, 5])
    assert "download=True" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("PRISMCACHE_S3_ENDPOINT_URL", s3_server.endpoint)
    paths = torch_em.get_e11bio_data(tmp_path, crop_ids=[5, 5], download=True)
    assert paths == [str(tmp_path / "instance" / "crop_5.h5")] * 2
    assert original.get_e11bio_data(tmp_path, "instance", [5, 5]) == torch_em.get_e11bio_paths(
        tmp_path, crop_ids=[5, 5]
    )
    Path(paths[0]).write_bytes(b"half")
    with pytest.raises(CropNotCachedError, match=r"instance/0, instance/5 .*crop_5\.h5 lies there"):
        torch_em.get_e11bio_data(tmp_path, crop_ids=[0, 5])


def test_without_crop_ids_all_that_torch_em_knows_are_meant(tmp_path: Path) -> None:
    with pytest.raises(CropNotCachedError, match=r"(?m)semantic/0, .* semantic/16$"):
        torch_em.get_e11bio_data(tmp_path, "semantic")


def test_a_service_gives_the_same_batches_from_downloads_and_from_its_mount(
    service: Service, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRISMCACHE_URL", service.url)
    monkeypatch.setenv("PRISMCACHE_DOWNLOADS", str(tmp_path / "downloads"))
    with pytest.raises(CropNotCachedError, match=r"not cached in http.*instance/5"):
        torch_em.get_e11bio_data(tmp_path / "data", crop_ids=[5])
    with service.client() as http:
        assert http.get("/v1/jobs").json()["jobs"] == []
    downloaded = batches(torch_em.get_e11bio_loader, tmp_path / "data", crop_ids=[5], download=True)
    monkeypatch.setenv("PRISMCACHE_ROOT", str(service.config.root))
    paths = torch_em.get_e11bio_data(tmp_path / "data", crop_ids=[5])
    assert paths == [str(service.config.root / "instance" / "crop_5.h5")]
    assert_same(downloaded, batches(torch_em.get_e11bio_loader, tmp_path / "data", crop_ids=[5]))
    assert not (tmp_path / "data").exists()
    monkeypatch.delenv("PRISMCACHE_URL")
    assert_same(downloaded, batches(original.get_e11bio_loader, cache, crop_ids=[5]))
