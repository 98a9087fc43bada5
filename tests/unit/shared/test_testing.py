"""The in-memory service for users' tests: real files, and jobs that are held or fail on request."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from prismcache import (
    AsyncPrismClient,
    Crop,
    PrismClient,
    RequestError,
    ServiceUnreachableError,
    SourceUnreachableError,
    UnauthorizedError,
    UnknownSplitError,
)
from prismcache.config import Settings
from prismcache.schema import Verdict
from prismcache.testing import InMemoryService
from tests.support.own_splits import LAB_CATALOG


@pytest.fixture
def service():
    with InMemoryService() as running:
        yield running


def test_given_arrays_are_what_is_read():
    raw = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    labels = np.zeros((3, 4, 5), np.int64)
    labels[1], labels[2] = 7, 2**40
    with InMemoryService({("semantic", 4): {"raw": raw, "labels": labels}}) as service, service.client() as client:
        [path] = client.ensure("semantic", progress=False)
        [subset] = client.ensure("semantic", 4, channels=1, progress=False)
        assert subset == path
        with h5py.File(path) as file:
            assert sorted(file["raw"]) == ["ch_00", "ch_01"]
            np.testing.assert_array_equal(file["raw/ch_01"][:], raw[1])
            np.testing.assert_array_equal(file["labels_ids"][:], [0, 7, 2**40])
            np.testing.assert_array_equal(file["labels_ids"][:][file["labels"][:]], labels)
            assert file["labels"].dtype == np.uint32
            assert tuple(file["raw/ch_00"].attrs["voxel_size"]) == (400, 168, 168)
            assert file.attrs["num_channels"] == 2


def test_a_subset_holds_only_its_channels(service):
    with service.client() as client:
        [path] = client.ensure("instance", 0, channels=[2, 0], progress=False)
    assert path.endswith("crop_0.ch00_02.h5")
    with h5py.File(path) as file:
        assert sorted(file["raw"]) == ["ch_00", "ch_02"]


def test_made_up_crops_are_always_the_same_and_differ():
    digests = []
    for _ in range(2):
        with InMemoryService() as service, service.client() as client:
            digests.append([file.sha256 for file in client.ensure_files("instance", progress=False)])
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 3


def test_raw_that_reaches_beyond_labels_is_context():
    raw = np.arange(2 * 5 * 4 * 9, dtype=np.uint8).reshape(2, 5, 4, 9)
    crops = {("instance", 0): {"raw": raw, "labels": np.ones((3, 4, 5), np.uint8)}}
    with InMemoryService(crops) as service, service.client() as client:
        [plain] = client.ensure("instance", 0, progress=False)
        [clipped] = client.ensure("instance", 0, context=(1, 2, 1), progress=False)
        [whole] = client.ensure("instance", 0, context="all", channels=1, progress=False)
        with Crop(plain) as crop:
            np.testing.assert_array_equal(crop.channel(1)[...], raw[1, 1:4, :, 2:7])
        with Crop(clipped) as crop:
            assert crop.context == ((1, 0, 1), (1, 0, 1))
            np.testing.assert_array_equal(crop.channel(1)[...], raw[1, :, :, 1:8])
        with Crop(whole) as crop:
            assert (crop.channels, crop.offset, crop.raw_offset) == ((1,), (400, 0, 336), (0, 0, 0))
            np.testing.assert_array_equal(crop.channel(1)[...], raw[1])
        assert client.ensure("instance", 0, context=2, channels=1, progress=False) == [whole]


def test_synapse_crops_have_further_arrays_and_no_labels():
    given = {"raw": np.ones((2, 8, 8, 8)), "psd95_output": np.full((4, 4, 2), 2**60), "psd95_mask": np.ones((2, 2, 2))}
    with InMemoryService({("synapses", 0): ..., ("synapses", 1): given}) as service, service.client() as client:
        made_up, path = client.ensure("synapses", context=3, progress=False)
        assert path.endswith("crop_1.h5")
        with Crop(made_up) as crop:
            assert crop.arrays == ("psd95_output", "psd95_mask", "psd95_weights", "psd95_underseg")
        with Crop(path) as crop:
            assert (crop.has_labels, crop.arrays, crop.raw_shape) == (False, ("psd95_output", "psd95_mask"), (8, 8, 8))
            assert (crop.array_start("psd95_output"), crop.array("psd95_output").dtype) == ((2, 2, 3), np.int64)
        info = client.describe("synapses", 1)
        assert (info.has_labels, info.labels_shape, info.products) == (False, None, ())
        assert [(array.name, array.shape) for array in info.arrays] == [
            ("psd95_output", (4, 4, 2)),
            ("psd95_mask", (2,) * 3),
        ]
        with pytest.raises(RequestError, match="has no product 'facts'"):
            client.ensure("synapses", 0, product="facts", progress=False)


def test_a_catalog_gives_splits_of_ones_own(tmp_path):
    catalog = tmp_path / "lab.toml"
    catalog.write_text(LAB_CATALOG)
    with (
        InMemoryService({("mito", 0): ..., ("instance", 0): ...}, catalog=catalog) as service,
        service.client() as client,
    ):
        with Crop(client.ensure("mito", 0, progress=False)[0]) as crop:
            assert (crop.entry.expansion, crop.entry.classes, crop.arrays) == (4, True, ("mask",))
            assert crop.provenance.manifest.definition == crop.entry.definition
        assert [info.same_tissue for info in client.catalog()] == [("mito/0",), ("instance/0",)]
        for ask in (client.ensure, client.describe, client.verify, client.remove, client.catalog):
            with pytest.raises(UnknownSplitError, match=r"the splits are .*'mito'"):
                ask("nuclei") if ask == client.catalog else ask("nuclei", 0)


@pytest.mark.parametrize(
    "given",
    [
        3,
        {"raw": np.zeros((1, 2, 2, 2))},
        {"raw": np.zeros((1, 2, 2, 2)), "labels": np.zeros((2, 2, 3))},
        {"raw": np.zeros((1, 2, 2, 2)), "labels": np.zeros((2, 2, 2)), "mask": 3},
    ],
)
def test_arrays_that_do_not_fit_are_refused(given):
    with (
        InMemoryService({("instance", 0): given}) as service,
        service.client() as client,
        pytest.raises(RequestError, match="instance/0"),
    ):
        client.ensure("instance", 0, progress=False)


def test_progress_can_be_held(service):
    states = []

    def see(job) -> None:
        states.append((job.state.value, sum(crop.state.is_final for crop in job.crops)))
        service.resume()

    service.hold()
    with service.client() as client:
        client.ensure("instance", progress=see)
    assert states == [("running", 0), ("running", 1), ("running", 2), ("done", 3)]


def test_failures_come_as_told(service):
    service.fail("instance", 1, SourceUnreachableError("the bucket is away"))
    with service.client() as client:
        with pytest.raises(SourceUnreachableError, match="the bucket is away"):
            client.ensure("instance", progress=False)
        service.fail("instance", 1, None)
        assert len(client.ensure("instance", progress=False)) == 3


def test_it_is_found_by_url_alone(service, monkeypatch):
    monkeypatch.setenv("PRISMCACHE_URL", service.url)
    with PrismClient() as client:
        [path] = client.ensure("semantic", 2, progress=False)
    assert "prismcache" in path
    assert str(service.root) not in path
    assert service.requests[0] == "POST /v1/jobs"


def test_clients_of_both_kinds(service):
    assert isinstance(service.async_client(), AsyncPrismClient)
    with service.client(mounted=False) as client:
        assert client.settings.mount is None
        assert client.settings == Settings.load({}, **service.settings(mounted=False))


def test_a_damaged_file_is_found_and_written_again(service, tmp_path):
    service.cache("instance", 1)
    path = service.cache("instance", 0)
    path.write_bytes(b"x")
    with service.client() as client:
        assert [result.verdict for result in client.verify("instance")] == [Verdict.OK, Verdict.CORRUPT]
        assert client.verify("instance", 0, repair=True)[0].verdict is Verdict.REPAIRED
        assert client.verify("instance", 0)[0].verdict is Verdict.OK
        path.unlink()
        assert client.ensure("instance", 0, progress=False) == [str(path)]
        assert path.exists()


def test_another_token_is_refused():
    with InMemoryService(token="prism_right") as service:
        with service.client(token="prism_wrong") as client, pytest.raises(UnauthorizedError):
            client.ensure("instance", 0, progress=False)
        with service.client() as client:
            assert client.catalog("instance")


def test_a_url_of_this_process_is_forgotten_with_its_service():
    with InMemoryService() as service:
        pass
    with service.client() as client, pytest.raises(ServiceUnreachableError):
        client.catalog()


def test_a_root_may_be_given(tmp_path):
    with InMemoryService(root=tmp_path / "lab") as service:
        path = service.cache("instance", 0)
        assert path.is_relative_to(tmp_path / "lab")
    assert path.exists()
